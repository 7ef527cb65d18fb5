"""What is asked, what came back, and how it was judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.bench.endpoint import Api
from server.bench.record import Outcome

Prompt = str | list[dict[str, Any]]
"""A text for ``/v1/completions``, messages for ``/v1/chat/completions``."""


def plain(text: str) -> str:
    """``text`` without halves of surrogate pairs, which neither files nor JSON readers take."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer read by one rule."""

    correct: bool
    extracted: str | None
    """``None``: nothing could be extracted, the answer is invalid."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an answer was judged; an invalid one is never correct."""

    correct: bool
    extracted: str | None
    outcome: str
    """Short and countable: ``right``, ``wrong``, ``passed``, an exception's name, …"""
    detail: str = ""
    other: dict[str, Reading] = field(default_factory=dict)
    """The same answer by rules that do not decide."""


@dataclass(frozen=True, slots=True)
class Result:
    """One question to one side, with everything that became of it."""

    side: str
    id: str
    prompt: Prompt
    expected: str | None
    outcome: Outcome
    error_class: str | None = None
    error: str | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0
    """From sending the request to its whole answer."""
    river: dict[str, Any] | None = None
    river_trace: list[int] | None = None
    """Exit layer of each token, where the river field asked for it."""
    verdict: Verdict | None = None

    @property
    def failed(self) -> bool:
        return self.outcome in (Outcome.FAILED, Outcome.INCOMPLETE)

    @property
    def cut_off(self) -> bool:
        """The answer reached the limit of tokens."""
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class Problem:
    """One question."""

    id: str
    prompt: Prompt
    expected: str | None = None
    """The reference answer, where a comparison with it decides."""


class Task(Protocol):
    """A set of problems and the way their answers are judged."""

    name: str
    problems: Sequence[Problem]

    def stop(self, api: Api) -> Sequence[str]:
        """Texts before which an answer ends."""
        ...

    def describe(self) -> dict[str, Any]:
        """How it judges, for reports; two runs that differ here cannot be compared."""
        ...

    async def prepare(self) -> list[str]:
        """Before anything is asked: find out what judging needs.

        Returns:
            What people should know about it.

        Raises:
            BenchError: answers cannot be judged here.
        """
        ...

    async def judge(self, index: int, text: str) -> Verdict:
        """Judge the answer ``text`` to the problem ``index``.

        Raises:
            JudgeError: nothing is known about the answer, the machinery failed.
        """
        ...


class JudgeError(Exception):
    """An answer could not be judged for a reason that does not lie in the answer."""
