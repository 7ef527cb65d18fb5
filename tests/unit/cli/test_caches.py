"""Cache folders that cannot be written to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.cli.process import writable_caches

NAMES = ("RIVER_CACHE_DIR", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "HF_HOME")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (*NAMES, "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_folders_stay_or_are_temporary_and_one_line_says_so(monkeypatch, capsys) -> None:
    before = dict(os.environ)
    with writable_caches():
        assert dict(os.environ) == before
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("HOME", "/proc/none")
    with writable_caches():
        places = [Path(os.environ[name]) for name in NAMES]
        for place in places:
            place.mkdir(parents=True)
    assert not any(place.exists() for place in places)
    assert not any(name in os.environ for name in NAMES)
    (line,) = capsys.readouterr().err.splitlines()
    assert "'/proc/none/.cache/river-vllm'" in line


def test_a_folder_that_was_named_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/proc/none/x")
    with writable_caches():
        assert os.environ["VLLM_CACHE_ROOT"] != "/proc/none/x"
        assert "RIVER_CACHE_DIR" not in os.environ
    assert os.environ["VLLM_CACHE_ROOT"] == "/proc/none/x"


def test_models_that_were_fetched_are_still_found(home: Path, monkeypatch) -> None:
    """On a file system that only reads, as in a container."""
    (home / ".cache" / "huggingface").mkdir(parents=True)
    monkeypatch.setattr("server.cli.process.unwritable", lambda path: "Read-only file system")
    with writable_caches():
        assert "HF_HOME" not in os.environ
        assert "VLLM_CACHE_ROOT" in os.environ
