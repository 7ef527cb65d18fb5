"""Which compilers are refused, and what is remembered."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

from river_vllm import host
from river_vllm.host import cannot_compile


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVER_CACHE_DIR", str(tmp_path / "cache"))


def use(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler of which ``script`` is the program; where it leaves a line for each run."""
    path = folder / "c++"
    path.write_text(f'#!/bin/sh\necho run >> "{folder}/runs"\n{script}\n')
    path.chmod(0o755)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: str(path))
    return folder / "runs"


def test_a_compiler_that_passes_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = use("exit 0", tmp_path, monkeypatch)
    assert cannot_compile() is None
    assert cannot_compile() is None
    assert runs.read_text() == "run\n"


def test_pythons_headers_are_part_of_what_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be removed, or another machine that shares the cache may have none."""
    include = tmp_path / "include"
    include.mkdir()
    header = include / "Python.h"
    header.touch()
    monkeypatch.setattr(host.sysconfig, "get_path", lambda _: str(include))
    runs = use(f'test -e "{header}"', tmp_path, monkeypatch)
    assert cannot_compile() is None
    header.unlink()
    assert cannot_compile() is not None
    assert runs.read_text() == "run\nrun\n"


def test_a_compiler_that_fails_may_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = use("echo 'c.cpp: fatal error: Python.h' >&2; exit 1", tmp_path, monkeypatch)
    for _ in range(2):
        assert str(cannot_compile()).endswith("fatal error: Python.h")
    assert runs.read_text() == "run\nrun\n"
    use("exit 0 # mended", tmp_path, monkeypatch)
    assert cannot_compile() is None


def test_where_there_is_none_the_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def search() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", search)
    monkeypatch.setenv("CXX", "/bin/false")
    assert "CXX=/bin/false" in str(cannot_compile())


def test_a_compiler_that_hangs_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use("exit 0", tmp_path, monkeypatch)

    def run(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("c++", 60)

    monkeypatch.setattr(host.subprocess, "run", run)
    assert "timed out" in str(cannot_compile())
