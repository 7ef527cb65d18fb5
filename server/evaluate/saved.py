"""Runs that were saved by ``--json``, read again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from server.bench.errors import BenchError
from server.bench.output.document import FORMAT
from server.evaluate.output.document import KIND
from server.evaluate.problem import Result


@dataclass(frozen=True, slots=True)
class SavedData:
    """The file that was asked."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class SavedSide:
    """Who was asked, and with which river."""

    url: str
    model: str
    river: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class SavedRun:
    """What a comparison needs of a document."""

    kind: str
    format: int
    task: str
    data: SavedData
    settings: dict[str, Any]
    judging: dict[str, Any]
    interrupted: bool
    sides: dict[str, SavedSide]
    answers: list[Result]

    @property
    def side(self) -> SavedSide:
        (side,) = self.sides.values()
        return side


def read_run(path: str) -> SavedRun:
    """Read a whole evaluation of one side.

    Raises:
        BenchError: the file is another one, or the evaluation in it was not completed.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BenchError(f"{path!r}: {error.strerror}") from None
    try:
        run = TypeAdapter(SavedRun).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise BenchError(
            f"{path!r}: not an evaluation written by --json: {place}: {first['msg']}"
        ) from None
    for reason in _unusable(run):
        raise BenchError(f"{path!r}: {reason}")
    return run


def _unusable(run: SavedRun) -> Iterator[str]:
    if run.kind != KIND or run.format != FORMAT:
        yield f"'kind' = {run.kind!r}, 'format' = {run.format}: expected {KIND!r} and {FORMAT}"
    if len(run.sides) != 1:
        yield f"it has {len(run.sides)} sides; expected an evaluation of one setting"
    if run.interrupted:
        yield "the evaluation was interrupted"
    if failed := sum(answer.failed for answer in run.answers):
        yield f"{failed} of its {len(run.answers)} requests failed"
    if not run.answers or any(answer.verdict is None for answer in run.answers):
        yield "it has answers that were not judged"


def check_comparable(a: SavedRun, b: SavedRun) -> None:
    """Both must have asked the same, and judged alike.

    Raises:
        BenchError: names what differs.
    """
    for name, one, two in (
        ("task", a.task, b.task),
        ("data.sha256", a.data.sha256, b.data.sha256),
        ("judging", a.judging, b.judging),
        ("number of answers", len(a.answers), len(b.answers)),
    ):
        if one != two:
            raise BenchError(f"A and B cannot be compared: {name} is {one} in A and {two} in B")
    for left, right in zip(a.answers, b.answers, strict=True):
        if (left.id, left.prompt) != (right.id, right.prompt):
            ids = left.id if left.id == right.id else f"{left.id} in A, {right.id} in B"
            raise BenchError(f"A and B cannot be compared: their prompts differ (problem {ids})")


def differing_settings(a: SavedRun, b: SavedRun) -> list[str]:
    """Settings that may explain a difference, and that no one may have meant."""
    ignored = {"concurrency", "timeout_s", "shots_file"}  # prompts are known to be the same
    names = sorted((set(a.settings) | set(b.settings)) - ignored)
    return [
        f"{name} was {a.settings.get(name)!r} in A and {b.settings.get(name)!r} in B"
        for name in names
        if a.settings.get(name) != b.settings.get(name)
    ]
