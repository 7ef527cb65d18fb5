"""The command as a user runs it, a server to run it against, and small files of problems."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.eval.fake import FakeServer
from tests.support.command import Ran, run


@pytest.fixture
def fake() -> Iterator[Callable[..., FakeServer]]:
    """Starts servers that end with the test: ``fake(respond)``."""
    with ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(FakeServer(*args, **options))


@pytest.fixture
def evaluate(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Runs ``river-vllm eval``, lm-eval in its own process, always with ``--json``."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return lambda *words: run(("eval",), words, tmp_path / "out.json", capfd)


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
