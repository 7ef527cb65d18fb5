"""Prompts as tokens: from files, or made up by the model."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.bench.errors import BenchError

KEYS = ("messages", "question", "prompt")
"""Fields of a row that may hold its prompt: a conversation, one message of the user, or text to
continue. The first of them that a row has is taken."""

SELF_MADE = "made by the model"
_MARK = "\N{SYMBOL FOR SUBSTITUTE}"


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts in the order in which they are used.

    Attributes:
        source: names of the files, or that the model made them.
        sha256: of the files' bytes, one file after the other.
        tokens: each prompt's.
        answers: each answer's tokens, where the rows give it.
    """

    source: str
    sha256: str | None
    tokens: list[list[int]]
    answers: list[list[int]] | None = None

    def head(self, count: int) -> Prompts:
        """The first ``count``."""
        answers = None if self.answers is None else self.answers[:count]
        return replace(self, tokens=self.tokens[:count], answers=answers)


def from_files(
    paths: Sequence[Path],
    tokenizer: Any,
    longest: int,
    seed: int,
    half: str | None = None,
    answer_field: str | None = None,
) -> Prompts:
    """All prompts of the files that are not too long, shuffled.

    Args:
        longest: tokens of the longest prompt taken.
        half: ``first`` takes the rows with odd, ``second`` those with even line numbers.
        answer_field: field of a row with the text of its answer.

    Raises:
        BenchError: a file or a row is not as expected; names the file and the line.
    """
    digest = hashlib.sha256()
    found = []
    for path in paths:
        data = _read(path)
        digest.update(data)
        rows = _rows(path, data)
        if half is not None:
            rows = rows[0 if half == "first" else 1 :: 2]
        for line, row in rows:
            place = f"--prompts '{path}', line {line}"
            answer = [] if answer_field is None else _answer(place, row, answer_field, tokenizer)
            found.append((_encode(place, row, tokenizer), answer))
    fitting = [item for item in found if 0 < len(item[0]) <= longest]
    if not fitting:
        raise BenchError(
            f"--prompts: no prompt of at most {longest} tokens in {', '.join(map(str, paths))}"
        )
    random.Random(seed).shuffle(fitting)
    source = ", ".join(path.name for path in paths)
    prompts, answers = [list(side) for side in zip(*fitting, strict=True)]
    return Prompts(
        f"{source} ({half} half)" if half else source,
        digest.hexdigest(),
        prompts,
        None if answer_field is None else answers,
    )


def self_made(llm: Any, count: int, longest: int, seed: int) -> Prompts:
    """What the model writes where a user's message is expected (Xu et al., "Magpie", 2024).

    A model without a chat template writes the beginning of a text instead.
    """
    from vllm import SamplingParams

    tokenizer = llm.get_tokenizer()
    before, after = _frame(tokenizer)
    wanted = min(longest - len(before) - len(after), 64)
    params = [
        SamplingParams(
            temperature=1.0,
            max_tokens=wanted,
            min_tokens=4,
            seed=seed * 100_003 + index,
            extra_args={"river": {"enabled": False}},
        )
        for index in range(count)
    ]
    inputs = [{"prompt_token_ids": before}] * count
    outputs = llm.generate(inputs, params, use_tqdm=False)
    stop = set(tokenizer.all_special_ids)
    found = []
    for output in outputs:
        body = [token for token in output.outputs[0].token_ids if token not in stop]
        found.append([*before, *body, *after])
    return Prompts(SELF_MADE, None, found)


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens before and after a user's message."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], add_generation_prompt=True, tokenize=False
        )
        before, mark, after = text.partition(_MARK)
        if mark:
            encode = tokenizer.encode
            return (
                encode(before, add_special_tokens=False),
                encode(after, add_special_tokens=False),
            )
    start = tokenizer.bos_token_id
    return [tokenizer.eos_token_id if start is None else start], []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BenchError(f"--prompts '{path}': {error.strerror or error}") from None


def _rows(path: Path, data: bytes) -> list[tuple[int, Any]]:
    """Line number and row (an object, or a line of text), empty lines left out."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BenchError(f"--prompts '{path}': expected UTF-8 text") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise BenchError(f"--prompts '{path}': expected at least one prompt, found none")
    if not lines[0][1].lstrip().startswith("{"):
        return lines
    rows = []
    for number, line in lines:
        try:
            rows.append((number, json.loads(line)))
        except ValueError:
            raise BenchError(f"--prompts '{path}', line {number}: expected JSON") from None
    return rows


def _answer(place: str, row: Any, field: str, tokenizer: Any) -> list[int]:
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise BenchError(f"{place}: '{field}' = {text!r}: expected the answer's text (--answers)")
    encoded: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return encoded


def _encode(place: str, row: Any, tokenizer: Any) -> list[int]:
    if isinstance(row, str):
        return _text(row, tokenizer)
    if not isinstance(row, dict):
        raise BenchError(f"{place}: expected an object or text, got {row!r}")
    key = next((name for name in KEYS if name in row), None)
    if key is None:
        raise BenchError(f"{place}: expected one of {', '.join(KEYS)}, got {', '.join(row)}")
    value = row[key]
    if key == "messages":
        return _chat(place, value, tokenizer)
    if not isinstance(value, str):
        raise BenchError(f"{place}: '{key}' = {value!r}: expected text")
    if key == "question" and tokenizer.chat_template:
        return _chat(place, [{"role": "user", "content": value}], tokenizer)
    return _text(value, tokenizer)


def _text(text: str, tokenizer: Any) -> list[int]:
    encoded: list[int] = tokenizer.encode(text)
    return encoded


def _chat(place: str, messages: Any, tokenizer: Any) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # whatever the template raises for what it does not understand
        raise BenchError(f"{place}: 'messages': {error}") from None
    encoded: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return encoded
