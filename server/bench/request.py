"""Sends one streamed request and measures its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import httpx
from httpx_sse import EventSource
from pydantic import BaseModel, Field, ValidationError

_CONNECT_SECONDS = 30.0

_IDLE_SECONDS = 2.0
"""Unused connections close after this time. Common servers close theirs after 5 s, and a request
at that moment would fail."""


def make_client() -> httpx.AsyncClient:
    """A client that never queues requests: httpx's limit of 100 connections is lifted.

    It has no read timeout, since whole requests have their own.
    """
    return httpx.AsyncClient(
        timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE_SECONDS
        ),
        headers={"accept-encoding": "identity"},
    )


DONE = "[DONE]"
"""The data of the event that ends an OpenAI stream."""

BAD_FINISH = frozenset({"abort", "error"})
"""Finish reasons of incomplete answers."""

OUTPUT_FIELDS = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls")
"""Fields of a delta with generated output; a chunk that only announces the role has none."""


class _Choice(BaseModel):
    text: str | None = None
    delta: dict[str, Any] | None = None
    finish_reason: str | None = None

    def has_output(self) -> bool:
        return bool(self.text) or any((self.delta or {}).get(name) for name in OUTPUT_FIELDS)


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class Depths(BaseModel):
    """The fields of an answer's ``river`` object that a comparison adds up."""

    num_layers: int | None = None
    tokens: int = 0
    exit_layers: dict[int, int] = {}
    held: int = 0
    drafted: int = 0
    accepted: int = 0


class _Chunk(BaseModel):
    choices: list[_Choice] = Field(default=[])
    usage: _Usage | None = None
    river: Depths | None = None
    error: Any = None


@dataclass(slots=True)
class Answer:
    """The answer to one request; times are seconds since the request was sent."""

    error: str | None = "interrupted"
    """Why the answer is incomplete; ``None`` if it is complete."""
    first: float | None = None
    """Time of the first chunk with output; ``finished`` if none has any."""
    finished: float | None = None
    """Time of the chunk with ``finish_reason``."""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """By the server's usage; without one, the number of chunks with output."""
    river: Depths | None = None

    @property
    def tpot(self) -> float | None:
        """Time per output token in seconds, without the first token; ``None`` below two tokens or
        if no chunk carried output."""
        if self.first is None or self.finished is None or (self.completion_tokens or 0) < 2:
            return None
        if self.first >= self.finished:
            return None
        return (self.finished - self.first) / ((self.completion_tokens or 0) - 1)


async def ask(
    client: httpx.AsyncClient,
    url: str,
    headers: Mapping[str, str],
    body: Mapping[str, Any],
    timeout: float,
) -> Answer:
    """Send a request and follow its stream to the end.

    A failure of the server is the answer's ``error``, never an exception.

    Args:
        timeout: seconds for the whole request.
    """
    answer = Answer()
    sent = perf_counter()
    try:
        async with (
            asyncio.timeout(timeout),
            client.stream("POST", url, json=body, headers=headers) as response,
        ):
            if response.status_code != 200:
                text = (await response.aread()).decode("utf-8", "replace")
                answer.error = f"HTTP {response.status_code}: {_message(text)}"
            else:
                answer.error = await _follow(EventSource(response), answer, sent)
    except TimeoutError:
        answer.error = f"no end within {timeout:g} s"
    except (ValidationError, UnicodeDecodeError):
        answer.error = "the stream is malformed"
    except httpx.HTTPError as error:  # no connection, one that was cut, or no event stream
        answer.error = str(error) or type(error).__name__
    return answer


async def _follow(source: EventSource, answer: Answer, sent: float) -> str | None:
    """Fill ``answer`` from the stream; why it is incomplete, or ``None``."""
    done, chunks = False, 0
    async for event in source.aiter_sse():
        if event.data == DONE:
            done = True
            continue  # read the rest of the body, so that the connection can be reused
        seconds = perf_counter() - sent
        chunk = _Chunk.model_validate_json(event.data)
        if chunk.error is not None:
            return f"error in the stream: {_message(event.data)}"
        for choice in chunk.choices[:1]:
            if choice.has_output():
                chunks += 1
                answer.first = seconds if answer.first is None else answer.first
            if choice.finish_reason is not None:
                answer.finish_reason, answer.finished = choice.finish_reason, seconds
        if chunk.usage is not None:
            answer.prompt_tokens = chunk.usage.prompt_tokens
            answer.completion_tokens = chunk.usage.completion_tokens
        answer.river = chunk.river or answer.river
    if answer.completion_tokens is None:
        answer.completion_tokens = chunks
    if answer.first is None:
        answer.first = answer.finished
    if answer.finish_reason is None or not done:
        return f"the stream ended without {'[DONE]' if answer.finish_reason else 'finish_reason'}"
    if answer.finish_reason in BAD_FINISH:
        return f"the server gave the answer up (finish_reason {answer.finish_reason})"
    return None


def _message(text: str) -> str:
    """The message of an OpenAI error object, or the beginning of ``text``."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return text[:200]
