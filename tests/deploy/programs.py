"""Programs that judge the deployment's files, where the machine has them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def program(name: str, install: str) -> str:
    """Where ``name`` is: in the variable ``RIVER_NAME``, beside this Python, or in PATH.

    Skips the test, and says how to get the program, where it is in neither.
    """
    beside = Path(sys.executable).with_name(name)
    found = os.environ.get(f"RIVER_{name.upper().replace('-', '_')}") or shutil.which(name)
    found = found or (str(beside) if beside.exists() else None)
    if found is None:
        pytest.skip(f"{name} is not on this machine ({install}); this check was not run")
    return found


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Standard output and error of a command that succeeds."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
