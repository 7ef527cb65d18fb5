"""Ctrl-C: what was measured is kept and marked; exit status 130."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from bench_driver import command_line


def interrupted(server, answers: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the command and interrupt it once the server has begun to answer that many requests."""
    command = command_line(*words)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 30
    while sum(bool(seen.written) for seen in server.seen) < answers:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.parametrize("load", [("--concurrency", 2), ("--rate", 20)])
def test_run(mock, tmp_path: Path, load: tuple[object, ...]):
    server = mock(ttft=0, itl=0.01)
    file, lines = tmp_path / "out.json", tmp_path / "out.jsonl"
    words = (server.url, *load, "--warmup", 0, "--num-requests", 10_000, "--output-tokens", 10)
    done = interrupted(server, 6, *words, "--json", file, "--requests", lines)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stdout
    assert "Traceback" not in done.stderr
    document = json.loads(file.read_text())
    assert document["interrupted"] is True
    counts = document["levels"][0]["counts"]
    assert counts["completed"] >= 1
    assert counts["sent"] == len(lines.read_text().splitlines())
    assert counts["sent"] == counts["completed"] + counts["interrupted"]
    assert document["levels"][0]["e2e_ms"]["count"] == counts["completed"]


def test_compare(mock, tmp_path: Path):
    server = mock(ttft=0, itl=0.01)
    file = tmp_path / "out.json"
    words = ("compare", server.url, server.url, "--output-tokens", 10, "--warmup", 0)
    done = interrupted(server, 5, *words, "--rounds", 10_000, "--json", file)
    assert done.returncode == 130, done.stderr
    document = json.loads(file.read_text())
    assert document["interrupted"] is True
    assert 1 <= document["rounds_counted"] <= document["rounds"]


def test_before_anything_was_measured(mock, tmp_path: Path):
    server = mock(ttft=0, itl=0.05)
    file = tmp_path / "out.json"
    words = (server.url, "--output-tokens", 1000, "--warmup", 1, "--json", file)
    done = interrupted(server, 1, *words)
    assert done.returncode == 130, done.stderr
    assert json.loads(file.read_text())["levels"] == []
