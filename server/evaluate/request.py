"""One question, from sending it to its whole answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import httpx

from server.bench.chunk import error_message
from server.bench.jsontext import loads
from server.bench.record import Outcome, Record
from server.evaluate.problem import plain

_BAD_FINISH = frozenset({"abort", "error"})
"""Finish reasons by which servers say that the answer is not whole."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request that is ready to be sent."""

    url: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    timeout: float
    """Seconds until the whole answer."""


@dataclass(slots=True)
class Answer:
    """The text that came back; what became of the request is told by a ``Record``."""

    text: str | None = None
    token_ids: list[int] | None = None
    river_trace: list[int] | None = None


async def ask(client: httpx.AsyncClient, question: Question, record: Record) -> Answer:
    """Send ``question``; what goes wrong is told by ``record``, never by an exception.

    If the task is cancelled meanwhile, the record says ``INTERRUPTED``.
    """
    record.outcome = Outcome.INTERRUPTED
    record.sent = perf_counter()
    answer = Answer()
    try:
        async with asyncio.timeout(question.timeout):
            response = await client.post(
                question.url, json=dict(question.body), headers=dict(question.headers)
            )
        _read(response, record, answer)
    except TimeoutError:
        record.fail("timeout", f"no answer within {question.timeout:g} s")
    except httpx.HTTPError as error:
        record.fail("no connection", str(error) or type(error).__name__)
    finally:
        record.ended = perf_counter()
    return answer


def _read(response: httpx.Response, record: Record, answer: Answer) -> None:
    text = response.content.decode("utf-8", "replace")
    try:
        body = loads(text)
    except ValueError:
        body = None
    if response.status_code != 200:
        message = error_message(body) if isinstance(body, dict) else text[:200]
        record.fail(f"HTTP {response.status_code}", message)
        return
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        record.fail("malformed answer", f"expected an object with one choice: {text[:200]}")
        return
    _read_usage(body, record)
    _read_choice(choices[0], record, answer)


def _read_usage(body: Mapping[str, Any], record: Record) -> None:
    usage, river = body.get("usage"), body.get("river")
    if isinstance(usage, dict):
        record.prompt_tokens = _count(usage.get("prompt_tokens"))
        record.completion_tokens = _count(usage.get("completion_tokens"))
    record.river = river if isinstance(river, dict) else None


def _read_choice(choice: Mapping[str, Any], record: Record, answer: Answer) -> None:
    text, reason = _text(choice), choice.get("finish_reason")
    if text is None:
        record.fail("malformed answer", f"the choice has no text: {str(choice)[:200]}")
        return
    if not isinstance(reason, str):
        record.fail("ended without finish_reason", f"finish_reason {reason!r}")
    elif reason in _BAD_FINISH:
        record.fail(f"finish_reason {reason}", "the server gave the answer up")
    else:
        record.outcome = Outcome.COMPLETED
    record.finish_reason = reason if isinstance(reason, str) else None
    answer.text = plain(text)
    answer.token_ids = _whole_numbers(choice.get("token_ids"))
    answer.river_trace = _whole_numbers(choice.get("river_trace"))


def _text(choice: Mapping[str, Any]) -> str | None:
    message = choice.get("message")
    if isinstance(message, dict) and message.get("content", "") is None:
        return ""  # a chat answer of reasoning alone
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    return text if isinstance(text, str) else None


def _whole_numbers(value: object) -> list[int] | None:
    if not isinstance(value, list) or any(_count(item) is None for item in value):
        return None
    return value


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
