"""Prompts from files or written by the model: as rows, and as tokens."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from river_vllm.errors import RiverError
from river_vllm.host import text_of

KEYS = ("messages", "question", "prompt")
"""Fields that may hold a row's prompt, the first one counts: a conversation, one message of the
user, or text to continue."""


def read_rows(path: Path, option: str) -> tuple[bytes, list[tuple[int, Any]]]:
    """The file's bytes, and each non-empty line's number with its object or text.

    If the first line is no object, all lines are plain text.

    Args:
        option: the option that named the file, for errors.

    Raises:
        RiverError: the file cannot be read or has no row, or a line is not JSON.
    """
    place = f"{option} '{path}'"
    text = text_of(path, place)
    data = text.encode()
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise RiverError(f"{place}: expected at least one row, found none")
    if not lines[0][1].lstrip().startswith("{"):
        return data, [(number, line.rstrip("\r")) for number, line in lines]
    rows = []
    for number, line in lines:
        try:
            rows.append((number, from_json(line, allow_inf_nan=False)))
        except ValueError:
            raise RiverError(f"{place}, line {number}: expected JSON") from None
    return data, rows


def prompt_of(row: Any, place: str, field: str | None = None) -> tuple[str, Any]:
    """The name and the value of the field that holds a row's prompt; plain text is ``prompt``.

    Args:
        field: name of the field, if it is not one of ``KEYS``.

    Raises:
        RiverError: the row at ``place`` has no prompt, or its prompt is no text.
    """
    if isinstance(row, str):
        return "prompt", row
    if not isinstance(row, dict):
        raise RiverError(f"{place}: expected an object or text, got {row!r}")
    names = KEYS if field is None else (field,)
    key = next((name for name in names if name in row), None)
    if key is None:
        raise RiverError(f"{place}: expected one of {', '.join(names)}, got {', '.join(row)}")
    value = row[key]
    if key == "messages":
        if not isinstance(value, list) or not value:
            raise RiverError(f"{place}: 'messages' = {value!r}: expected a list of messages")
    elif not isinstance(value, str) or not value:
        raise RiverError(f"{place}: '{key}' = {value!r}: expected text")
    return key, value


SELF_MADE = "made by the model"
_MARK = "\N{SYMBOL FOR SUBSTITUTE}"
SHORTEST_MESSAGE, LONGEST_MESSAGE = 4, 64
"""Tokens of a message that the model writes."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts in their order of use.

    Attributes:
        source: names of the files, or ``SELF_MADE``.
        sha256: hash of all files' bytes in order.
        files: hash of each file.
        tokens: tokens of each prompt.
        answers: tokens of each answer, if the rows have answers.
        too_long: number of prompts left out because they are too long.
    """

    source: str
    sha256: str | None
    tokens: list[list[int]]
    answers: list[list[int]] | None = None
    too_long: int = 0
    files: tuple[str, ...] = ()

    def head(self, count: int) -> Prompts:
        """The first ``count`` prompts."""
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
    """The prompts of the files, shuffled, without those that are too long.

    Args:
        longest: tokens of the longest prompt taken.
        half: ``first`` takes the rows with odd, ``second`` those with even line numbers.
        answer_field: field of a row with the text of its answer.

    Raises:
        RiverError: a file or a row is not as expected; the message names file and line.
    """
    digest = hashlib.sha256()
    files = []
    found = []
    for path in paths:
        data, rows = read_rows(path, "--prompts")
        digest.update(data)
        files.append(hashlib.sha256(data).hexdigest())
        if half is not None:
            rows = [(line, row) for line, row in rows if line % 2 == (half == "first")]
        for line, row in rows:
            place = f"--prompts '{path}', line {line}"
            answer = [] if answer_field is None else _answer(place, row, answer_field, tokenizer)
            found.append((_encode(place, row, tokenizer), answer))
    fitting = [item for item in found if 0 < len(item[0]) <= longest]
    if not fitting:
        raise RiverError(
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
        sum(len(tokens) > longest for tokens, _ in found),
        tuple(files),
    )


def self_made(llm: Any, count: int, longest: int, seed: int, progress: Any) -> Prompts:
    """Prompts that the model writes in place of a user (Xu et al., "Magpie", 2024).

    A model without a chat template writes the beginning of a text.

    Args:
        longest: tokens of the longest prompt.
        progress: ``use_tqdm`` of vLLM's ``generate``.

    Raises:
        RiverError: the chat template leaves no room for a message.
    """
    from vllm import SamplingParams

    tokenizer = llm.get_tokenizer()
    before, after = _frame(tokenizer)
    room = longest - len(before) - len(after)
    if room < SHORTEST_MESSAGE:
        raise RiverError(
            f"a prompt of at most {longest} tokens has no room for a message: the chat template "
            f"alone takes {longest - room}; give --prompts FILE or a larger --max-model-len"
        )
    params = [
        SamplingParams(
            temperature=1.0,
            max_tokens=min(room, LONGEST_MESSAGE),
            min_tokens=SHORTEST_MESSAGE,
            seed=seed * 100_003 + index,
            extra_args={"river": {"enabled": False}},
        )
        for index in range(count)
    ]
    inputs = [{"prompt_token_ids": before}] * count
    outputs = llm.generate(inputs, params, use_tqdm=progress)
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
            return _plain(before, tokenizer), _plain(after, tokenizer)
    start = tokenizer.bos_token_id
    return [tokenizer.eos_token_id if start is None else start], []


def _answer(place: str, row: Any, field: str, tokenizer: Any) -> list[int]:
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise RiverError(f"{place}: '{field}' = {text!r}: expected the answer's text (--answers)")
    return _plain(text, tokenizer)


def _plain(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _encode(place: str, row: Any, tokenizer: Any) -> list[int]:
    key, value = prompt_of(row, place)
    if key == "question" and tokenizer.chat_template:
        key, value = "messages", [{"role": "user", "content": value}]
    if key != "messages":
        return list(tokenizer.encode(value))
    try:
        text = tokenizer.apply_chat_template(value, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # templates raise anything for bad messages
        raise RiverError(f"{place}: 'messages': {error}") from None
    return _plain(text, tokenizer)
