"""The command, and servers to run it against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.command import Ran, run
from tests.support.mock_openai import Behaviour, MockServer

pytest.importorskip("scipy", reason="river-vllm[bench]")


@pytest.fixture
def mock() -> Iterator[Callable[..., MockServer]]:
    """Starts servers that end with the test: ``mock(ttft=0.1)``."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(MockServer(Behaviour(**changes)))


@pytest.fixture
def compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Runs ``river-vllm bench compare``, always with ``--json``."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return lambda *words: run(("bench", "compare"), words, tmp_path / "out.json", capsys)
