"""The command as a user runs it, and servers to run it against."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bench_mock import Behaviour, MockServer

from server.bench.command import add_parser


@pytest.fixture
def mock() -> Iterator[Callable[..., MockServer]]:
    """Starts servers that end with the test: ``mock(ttft=0.1)``."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(MockServer(Behaviour(**changes)))


@dataclass
class Ran:
    """What a run of the command left."""

    status: int
    out: str
    err: str
    json_path: Path
    requests_path: Path

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.json_path.read_text())

    @property
    def level(self) -> dict[str, Any]:
        """The only level."""
        (level,) = self.document["levels"]
        return level

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.requests_path.read_text().splitlines()]


@pytest.fixture
def bench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Runs ``river-vllm bench`` in this process, always with ``--json`` and ``--requests``."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(*words: object) -> Ran:
        json_path, requests_path = tmp_path / "out.json", tmp_path / "requests.jsonl"
        files = ["--json", str(json_path), "--requests", str(requests_path)]
        parser = argparse.ArgumentParser(prog="river-vllm")
        add_parser(parser.add_subparsers())
        try:
            args = parser.parse_args(["bench", *map(str, words), *files])
            status = args.run(args)
        except SystemExit as leaving:
            status = leaving.code
        output = capsys.readouterr()
        return Ran(status, output.out, output.err, json_path, requests_path)

    return run
