"""What is asked: random words of chosen lengths, or the rows of a JSONL file."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from server.bench.errors import BenchError
from server.bench.jsontext import loads_sendable
from server.bench.words import WORDS

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question: text or messages."""

    content: str | list[Message]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Span:
    """A whole number between two bounds, both included."""

    low: int
    high: int

    def pick(self, chance: random.Random) -> int:
        return chance.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


class Dataset(Protocol):
    """Prompts by number, the same for the same seed whoever asks first."""

    def prompt(self, index: int, part: str) -> Prompt:
        """The prompt number ``index`` of ``part``, a level of the run or its warm-up."""
        ...

    def repeats(self, count: int) -> bool:
        """Whether some prompt is asked twice among ``count``."""
        ...

    def describe(self) -> dict[str, Any]:
        """For reports."""
        ...


@dataclass(frozen=True, slots=True)
class RandomWords:
    """Random words. Lengths are the same in every part of a run; the words are not, so that no
    level finds the prompts of an earlier one in the server's prefix cache."""

    words: Span
    max_tokens: Span
    seed: int

    def prompt(self, index: int, part: str) -> Prompt:
        lengths = random.Random(f"{self.seed}/lengths/{index}")
        count, max_tokens = self.words.pick(lengths), self.max_tokens.pick(lengths)
        text = random.Random(f"{self.seed}/words/{part}/{index}").choices(WORDS, k=count)
        return Prompt(" ".join(text), max_tokens)

    def repeats(self, count: int) -> bool:
        return False

    def describe(self) -> dict[str, Any]:
        return {"kind": "random", "words": str(self.words), "max_tokens": str(self.max_tokens)}


@dataclass(frozen=True, slots=True)
class JsonlRows:
    """Rows of a file, in order, and from the top again when they run out.

    Warm-up takes them from the bottom, so that a run measures no prompt already seen as long
    as the rows last.
    """

    rows: tuple[Prompt, ...]
    name: str = ""
    sha256: str = ""

    def prompt(self, index: int, part: str) -> Prompt:
        place = -1 - index if part == WARM_UP else index
        return self.rows[place % len(self.rows)]

    def repeats(self, count: int) -> bool:
        return count > len(self.rows)

    def describe(self) -> dict[str, Any]:
        return {"kind": "jsonl", "name": self.name, "rows": len(self.rows), "sha256": self.sha256}


WARM_UP = "warm-up"
"""The ``part`` of prompts that are not measured."""


def load_jsonl(path: str, field: str, max_tokens: Span, seed: int, chat: bool) -> JsonlRows:
    """Read a JSONL file: each row has ``messages``, or a text in ``field``.

    A row's own ``max_tokens`` counts; otherwise one is drawn from ``max_tokens``. Other
    fields of a row belong to other tools and are not used.

    Raises:
        BenchError: names the file, the line and what is expected there.
    """
    try:
        data = Path(path).read_bytes()
        lines = data.decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BenchError(f"--dataset {path!r}: {reason}") from None
    chance = random.Random(f"{seed}/max_tokens")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(_read_row(line, field, max_tokens.pick(chance), chat))
        except ValueError as error:
            raise BenchError(f"--dataset {path!r} line {number}: {error}") from None
    if not rows:
        raise BenchError(f"--dataset {path!r}: the file has no rows")
    return JsonlRows(tuple(rows), Path(path).name, hashlib.sha256(data).hexdigest())


def _read_row(line: str, field: str, max_tokens: int, chat: bool) -> Prompt:
    row = loads_sendable(line)
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object")
    own = row.get("max_tokens", max_tokens)
    if not isinstance(own, int) or isinstance(own, bool) or own < 1:
        raise ValueError(f"'max_tokens' = {own!r}: expected a whole number of at least 1")
    if "messages" in row:
        return Prompt(_messages(row["messages"], chat), own)
    text = row.get(field)
    if not isinstance(text, str) or not text:
        raise ValueError(f"'{field}' = {text!r}: expected a text, or 'messages' (--prompt-field)")
    return Prompt(text, own)


def _messages(value: Any, chat: bool) -> list[Message]:
    if not chat:
        raise ValueError("'messages' cannot be sent to completions; use --api chat")
    if not isinstance(value, list) or not value:
        raise ValueError("'messages': expected a list of messages")
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"'messages': expected objects with a 'role', got {message!r}")
    return value
