"""GSM8K: word problems whose answer is a number (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from server.bench.endpoint import Api
from server.evaluate.data import DataFile, Row, Selection
from server.evaluate.problem import Problem, Prompt, Reading, Verdict
from server.evaluate.tasks.numbers import equal, last_marked_number, last_number

T = TypeVar("T")

Rule = Literal["flexible", "strict"]

RULES = {"flexible": last_number, "strict": last_marked_number}

INSTRUCTION = (
    "Solve the problem step by step. Then write the answer as a plain number on a last line "
    "of this form:\n#### NUMBER"
)

STOP = ("Question:",)
"""Where a model that continues a text begins to invent the next problem."""


class Gsm8k:
    """Rows with ``question`` and ``answer``, which ends in ``#### NUMBER``."""

    name = "gsm8k"

    def __init__(self, selection: Selection, api: Api, rule: Rule = "flexible") -> None:
        """Raises:
        BenchError: a row is not as expected; the message names its line and field.
        """
        self._rule = rule
        shots_file = selection.shots_file or selection.data
        shots = "".join(_checked(shots_file, row, _example) for row in selection.shots)
        self.problems: Sequence[Problem] = [
            Problem(
                id=str(row.line),
                prompt=_checked(selection.data, row, _chat)
                if api == "chat"
                else shots + _checked(selection.data, row, _question),
                expected=_checked(selection.data, row, _expected),
            )
            for row in selection.asked
        ]

    def stop(self, api: Api) -> Sequence[str]:
        return () if api == "chat" else STOP

    def describe(self) -> dict[str, Any]:
        return {"verdict": self._rule}

    async def prepare(self) -> list[str]:
        return []

    async def judge(self, index: int, text: str) -> Verdict:
        expected = self.problems[index].expected
        readings = {name: _read(extract(text), expected) for name, extract in RULES.items()}
        decides = readings.pop(self._rule)
        outcome = "right" if decides.correct else "wrong"
        return Verdict(
            correct=decides.correct,
            extracted=decides.extracted,
            outcome="no answer" if decides.extracted is None else outcome,
            other=readings,
        )


def _read(found: str | None, expected: str | None) -> Reading:
    correct = found is not None and expected is not None and equal(found, expected)
    return Reading(correct, found)


def _checked(data: DataFile, row: Row, make: Callable[[Row], T]) -> T:
    try:
        return make(row)
    except ValueError as error:
        raise data.error(row, error) from None


def _question(row: Row) -> str:
    return f"Question: {row.text('question')}\nAnswer:"


def _example(row: Row) -> str:
    return f"{_question(row)} {row.text('answer')}\n\n"


def _chat(row: Row) -> Prompt:
    return [{"role": "user", "content": f"{row.text('question')}\n\n{INSTRUCTION}"}]


def _expected(row: Row) -> str:
    answer = row.text("answer")
    number = last_marked_number(answer)
    if number is None:
        raise ValueError(f"'answer' = …{answer[-20:]!r}: expected '#### NUMBER' at its end")
    return number
