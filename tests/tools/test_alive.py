"""A long command beside which something is said."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tools.alive import main, run


def test_it_speaks_until_the_command_is_done(tmp_path: Path) -> None:
    """The command waits for the third line."""
    said: list[str] = []
    there = tmp_path / "there"

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            there.touch()

    wait = f"import os, time\nwhile not os.path.exists({str(there)!r}): time.sleep(0.01)"
    assert run("waiting", 5, [sys.executable, "-c", wait], say, every=0.05) == 0
    assert len(said) >= 3 and said[0].startswith("waiting, 0 s")


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        *((["x", "9", sys.executable, "-c", f"raise SystemExit({n})"], n) for n in (0, 3)),
        (["x", "9", "sh", "-c", "kill $$"], 128 + signal.SIGTERM),
        *((argv, 2) for argv in ([], ["x", "9"], ["x", "soon", "true"])),
    ],
)
def test_the_exit_status_is_the_commands(argv: list[str], status: int) -> None:
    assert main(argv) == status
