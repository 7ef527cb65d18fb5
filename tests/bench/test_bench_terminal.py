"""The progress bar: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess

from bench_driver import command_line
from bench_mock import MockServer


def errors_of(server: MockServer, *words: str) -> str:
    """Standard error of a run in which it is a terminal."""
    command = command_line(server.url, "--num-requests", 5, *words)
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
    os.close(theirs)
    found = b""
    try:
        while data := os.read(ours, 65536):
            found += data
    except OSError:  # Linux reports the end of a closed pseudo-terminal so
        pass
    os.close(ours)
    assert done.returncode == 0
    return found.decode("utf-8", "replace")


def test_bar_on_a_terminal(mock):
    assert "5 done" in errors_of(mock(ttft=0, itl=0))


def test_no_bar_where_it_is_unwanted(mock):
    assert errors_of(mock(ttft=0, itl=0), "--no-progress") == ""


def test_no_bar_in_a_file(bench, mock):
    ran = bench(mock(ttft=0, itl=0).url, "--num-requests", 2)
    assert ran.status == 0
    assert ran.err == ""
