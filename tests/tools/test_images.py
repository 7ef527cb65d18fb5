"""tools/images.py: which program builds, what it is told, and under what names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.files import ROOT, compose
from tools import images


def program(folder: Path, name: str, status: int) -> None:
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "{name} $*"\nexit {status}\n')
    path.chmod(0o755)


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "images.py", *arguments],
        env={**os.environ, "PATH": str(path)},
        capture_output=True,
        text=True,
    )


def test_without_either_program_there_is_one_line(tmp_path: Path) -> None:
    program(tmp_path, "docker", 1)  # its daemon does not run
    done = run(tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_podman_builds_where_docker_does_not_answer(tmp_path: Path) -> None:
    program(tmp_path, "docker", 1)
    program(tmp_path, "podman", 0)
    done = run(tmp_path, "--build-arg", "PYTHON_IMAGE=mine")
    assert done.returncode == 0, done.stderr
    options = "--format docker --build-arg PYTHON_IMAGE=mine"
    for target in images.TARGETS:
        assert f"podman build {options} --target {target}" in done.stdout


@pytest.mark.parametrize(("service", "target"), [("river-cpu", "cpu"), ("loadtest", "client")])
def test_compose_finds_the_images_by_their_names(service: str, target: str) -> None:
    assert images.image(target) == compose()["services"][service]["image"]
