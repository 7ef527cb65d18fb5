"""The command as a user runs it, and servers to run it against."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.cli.main import main
from tests.support.mock_openai import Behaviour, MockServer

pytest.importorskip("scipy", reason="river-vllm[bench]")


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
    file: Path

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.file.read_text())

    @property
    def ratios(self) -> dict[str, dict[str, Any]]:
        return {ratio["metric"]: ratio for ratio in self.document["ratios"]}


@pytest.fixture
def compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Runs ``river-vllm bench compare`` in this process, always with ``--json``."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(*words: object) -> Ran:
        file = tmp_path / "out.json"
        try:
            status = main(["bench", "compare", *map(str, words), "--json", str(file)])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        output = capsys.readouterr()
        return Ran(status, output.out, output.err, file)

    return run
