"""The command as a user runs it, servers to run it against, and small files of problems."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.cli.main import main
from tests.evaluate.mock import MockServer, Reply, Respond


@pytest.fixture
def mock() -> Iterator[Callable[..., MockServer]]:
    """Starts servers that end with the test: ``mock(respond)``."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(MockServer(*args, **options))


@dataclass
class Ran:
    """What a run of the command left."""

    status: int
    out: str
    err: str
    json_path: Path

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.json_path.read_text())

    @property
    def answers(self) -> list[dict[str, Any]]:
        return self.document["answers"]

    def figures(self, side: str = "A") -> dict[str, Any]:
        return self.document["figures"][side]


@pytest.fixture
def evaluate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Runs ``river-vllm eval`` in this process, always with ``--json``."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(*words: object, json_name: str = "out.json") -> Ran:
        json_path = tmp_path / json_name
        try:
            status = main(["eval", *map(str, words), "--json", str(json_path)])
        except SystemExit as leaving:
            status = leaving.code
        output = capsys.readouterr()
        return Ran(status, output.out, output.err, json_path)

    return run


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """Ten word problems: the one on line n asks for n + n."""
    rows = [
        {"question": f"What is {n} + {n}?", "answer": f"It is <<{n}+{n}={2 * n}>>.\n#### {2 * n}"}
        for n in range(1, 11)
    ]
    return write_rows(tmp_path / "sums.jsonl", rows)


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    """Four functions to write: ``add_n(x)`` adds n."""
    rows = [
        {
            "task_id": f"add/{n}",
            "prompt": f'import math\n\n\ndef add_{n}(x):\n    """Add {n} to x."""\n',
            "entry_point": f"add_{n}",
            "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
        }
        for n in range(4)
    ]
    return write_rows(tmp_path / "functions.jsonl", rows)


def asked(body: dict[str, Any]) -> int:
    """The n of the word problem that a request asks."""
    text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    return int(text.rpartition("What is ")[2].split()[0])


def right(body: dict[str, Any]) -> Reply:
    return Reply(f" It is easy.\n#### {2 * asked(body)}")


def wrong_for(*problems: int) -> Respond:
    """Answers all word problems but these."""

    def respond(body: dict[str, Any]) -> Reply:
        return Reply("#### 999", token_ids=[9]) if asked(body) in problems else right(body)

    return respond
