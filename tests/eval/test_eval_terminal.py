"""The command as a process of its own: the progress bar, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.evaluate.conftest import asked, right
from tests.evaluate.mock import Reply


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "server.cli.main", "eval", *map(str, words)]


def errors_of(*words: object) -> str:
    """Standard error of a run in which it is a terminal."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        command(*words), stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    )
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


def test_bar_on_a_terminal(mock, sums: Path):
    assert "5 done" in errors_of("gsm8k", mock(right).url, "--data", sums)


def test_no_bar_where_it_is_unwanted(mock, sums: Path):
    assert errors_of("gsm8k", mock(right).url, "--data", sums, "--no-progress") == ""


def test_ctrl_c(mock, sums: Path, tmp_path: Path):
    server = mock(lambda body: Reply(delay=30) if asked(body) == 8 else right(body))
    file = tmp_path / "out.json"
    words = command("gsm8k", server.url, "--data", sums, "--json", file)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while len(server.seen) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in out
    assert "Traceback" not in err
    document = json.loads(file.read_text())
    assert document["interrupted"] is True
    assert document["figures"]["A"]["judged"] == 2
