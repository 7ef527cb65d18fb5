"""HumanEval's metric: the model's program and its tests, run in the sandbox."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from server.eval.sandbox.isolation import Isolation, find_isolation
from server.eval.sandbox.program import passes
from server.eval.tasks import rows
from server.eval.tasks.code import completed, from_chat, with_tests


def load(**arguments: Any) -> dict[str, Any]:
    """The rows, once it is known that programs can be run here.

    Raises:
        RiverError: they cannot, or a row is not as expected.
    """
    if note := isolation().note:
        print(f"river_humaneval: {note}", file=sys.stderr)
    return rows.load(**arguments)


def judge(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """Whether the function, continued from its head, passes its tests."""
    return {"passed": _passes(doc, completed(doc["prompt"], results[0]))}


def judge_chat(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """Whether the function in the answer's code block passes its tests."""
    return {"passed": _passes(doc, from_chat(doc["prompt"], doc["entry_point"], results[0]))}


def _passes(doc: dict[str, str], program: str | None) -> float:
    if program is None:
        return 0.0
    source = with_tests(program, doc["test"], doc["entry_point"])
    return float(passes(source, isolation().words, isolation().limits))


@cache
def isolation() -> Isolation:
    return find_isolation()
