"""tools/make_venv.sh picks an interpreter, and says why where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "make_venv.sh"


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
    )


def interpreter(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_candidates_that_do_not_run_or_do_not_suit_are_passed_over(tmp_path: Path) -> None:
    interpreter(tmp_path, "python3.11", "echo 'not activated' >&2; exit 127")
    old = interpreter(tmp_path, "python3.12", "echo 3.10.4 >&2; exit 1")
    good = interpreter(tmp_path, "python3.13", f'exec "{sys.executable}" "$@"')
    found = run("--find", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert old.name not in found.stdout
    assert found.stdout.strip() == str(good)


def test_without_a_python_the_error_says_what_was_found(tmp_path: Path) -> None:
    interpreter(tmp_path, "python3", "echo 3.10.4 >&2; exit 1")
    failed = run(tmp_path / "venv", PATH=f"{tmp_path}:/bin", PYTHON="python3 python9")
    assert failed.returncode == 1
    assert "3.11" in failed.stderr
    assert "python3: 3.10.4" in failed.stderr
    assert not (tmp_path / "venv").exists()


def test_an_environment_is_made_once_and_anew_where_it_lacks_its_interpreter(tmp_path) -> None:
    folder = tmp_path / "venv"
    assert run(folder, PYTHON=sys.executable).returncode == 0
    (folder / "mine").touch()
    again = run(folder, PYTHON="no-such-python")
    assert (again.returncode, again.stdout) == (0, "")
    assert (folder / "mine").exists()
    (folder / "bin" / "python").unlink()
    assert run(folder, PYTHON=sys.executable).returncode == 0
    assert (folder / "bin" / "python").exists()


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").touch()
    refused = run(tmp_path, PYTHON=sys.executable)
    assert refused.returncode == 1
    assert (tmp_path / "letters.txt").exists()
