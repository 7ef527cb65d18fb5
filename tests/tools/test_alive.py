"""A long command beside which something is said."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.alive import line, main, run

TOOL = Path(__file__).resolve().parents[2] / "tools" / "alive.py"


@pytest.mark.parametrize(
    ("passed", "expected"),
    [
        (8.2, "installing, 8 s so far, about 190 s to go"),
        (198.0, "installing, 198 s so far, about 5 s to go"),
        (201.0, "installing, 201 s so far, longer than usual"),
    ],
)
def test_a_line(passed: float, expected: str) -> None:
    assert line("installing", 200, passed) == expected


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
    assert len(said) >= 3 and said[0].startswith("waiting, 0 s so far")


def test_a_quick_command_is_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["x", "9", sys.executable, "-c", "print('its own')"]) == 0
    assert capfd.readouterr().out == "its own\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 15)", 128 + signal.SIGTERM)],
)
def test_the_exit_status_is_the_commands(code: str, status: int) -> None:
    done = subprocess.run([sys.executable, str(TOOL), "x", "9", sys.executable, "-c", code])
    assert done.returncode == status


@pytest.mark.parametrize("argv", [[], ["x", "9"], ["x", "soon", "true"]])
def test_wrong_arguments(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert "usage" in capsys.readouterr().err
