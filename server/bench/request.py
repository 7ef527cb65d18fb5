"""One streamed request, from sending it to its record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import httpx

from server.bench.chunk import Chunk, ChunkError, error_message, parse_chunk
from server.bench.jsontext import loads
from server.bench.record import Arrival, Outcome, Record
from server.bench.sse import DONE, EventParser

_BAD_FINISH = frozenset({"abort", "error"})
"""Finish reasons by which servers say that the answer is not whole."""

_DRAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Planned:
    """A request that is ready to be sent."""

    index: int
    url: str
    headers: dict[str, str]
    body: dict[str, Any]
    timeout: float
    """Seconds for the whole request."""
    cancel_after: int | None = None
    """Leave after this many tokens (chunks with output where tokens are not reported)."""

    @property
    def asked_tokens(self) -> int | None:
        value = self.body.get("max_tokens", self.body.get("max_completion_tokens"))
        return value if isinstance(value, int) else None


async def send(client: httpx.AsyncClient, planned: Planned, record: Record) -> None:
    """Send ``planned`` and follow its stream to the end, filling ``record``.

    What the server does wrong is told by the record, never by an exception. If the task is
    cancelled meanwhile, the record keeps what came so far and says ``INTERRUPTED``.
    """
    record.outcome = Outcome.INTERRUPTED
    record.sent = perf_counter()
    streaming = False
    try:
        async with asyncio.timeout(planned.timeout):
            request = client.build_request(
                "POST", planned.url, json=planned.body, headers=planned.headers
            )
            response = await client.send(request, stream=True)
            try:
                streaming = await _is_stream(response, record)
                if streaming:
                    await _Follower(planned, record).run(response)
            finally:
                await response.aclose()
    except TimeoutError:
        if record.outcome is Outcome.INTERRUPTED:  # not merely while a finished body is drained
            record.fail("timeout", f"no end within {planned.timeout:g} s")
    except (ChunkError, UnicodeDecodeError) as error:
        record.fail("malformed stream", str(error))
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        if streaming:
            record.fail("connection lost in mid-stream", reason, Outcome.INCOMPLETE)
        else:
            record.fail("no connection", reason)
    finally:
        record.ended = record.ended or perf_counter()


async def _is_stream(response: httpx.Response, record: Record) -> bool:
    content_type = response.headers.get("content-type", "")
    if response.status_code == 200 and content_type.startswith("text/event-stream"):
        return True
    text = (await response.aread()).decode("utf-8", "replace")
    if response.status_code == 200:
        record.fail("not a stream", f"content type {content_type!r}: {text[:200]}")
        return False
    try:
        body = loads(text)
    except ValueError:
        body = None
    message = error_message(body) if isinstance(body, dict) else text[:200]
    record.fail(f"HTTP {response.status_code}", message)
    return False


class _Follower:
    """Turns the bytes of one response into the arrivals and the outcome of its record."""

    def __init__(self, planned: Planned, record: Record) -> None:
        self._cancel_after = planned.cancel_after
        self._record = record
        self._done = False

    async def run(self, response: httpx.Response) -> None:
        parser = EventParser()
        stream = response.aiter_raw()
        async for data in stream:
            seconds = perf_counter() - self._record.sent
            if any(self._ends_with(event, seconds) for event in parser.feed(data)):
                break
        else:
            self._done = parser.ends_with_done()
        if self._record.outcome is Outcome.INTERRUPTED:
            self._conclude()
        self._record.ended = perf_counter()
        if self._done:
            await _drain(stream)

    def _ends_with(self, event: str, seconds: float) -> bool:
        """Take in ``event``; whether there is nothing more to wait for."""
        record = self._record
        if event == DONE:
            self._done = True
            return True
        chunk = parse_chunk(event)
        if chunk.error is not None:
            record.fail("error in the stream", chunk.error)
            return True
        self._note(chunk, seconds)
        if self._cancel_after is not None and self._received() >= self._cancel_after:
            record.outcome = Outcome.CANCELLED
            return True
        return False

    def _note(self, chunk: Chunk, seconds: float) -> None:
        record = self._record
        if chunk.choice and not (chunk.role_only and not record.arrivals):
            record.arrivals.append(Arrival(seconds, chunk.output, chunk.completion_tokens))
        if chunk.prompt_tokens is not None:
            record.prompt_tokens = chunk.prompt_tokens
        if chunk.completion_tokens is not None:
            record.completion_tokens = chunk.completion_tokens
        if chunk.river is not None:
            record.river = chunk.river
        if chunk.finish_reason is not None:
            record.finish_reason, record.finish_seconds = chunk.finish_reason, seconds

    def _received(self) -> int:
        record = self._record
        if not record.arrivals or record.finish_reason is not None:
            return 0
        reported = record.arrivals[-1].tokens
        if reported is not None:
            return reported
        return sum(arrival.output for arrival in record.arrivals)

    def _conclude(self) -> None:
        record = self._record
        if record.finish_reason is None:
            record.fail("ended without finish_reason", "the stream was cut", Outcome.INCOMPLETE)
        elif not self._done:
            record.fail("ended without [DONE]", "the stream was cut", Outcome.INCOMPLETE)
        elif record.finish_reason in _BAD_FINISH:
            record.fail(f"finish_reason {record.finish_reason}", "the server gave the answer up")
        else:
            record.outcome = Outcome.COMPLETED


async def _drain(stream: AsyncIterator[bytes]) -> None:
    """Read the end of a finished body, so that its connection can be used again."""
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in stream:
                pass
    except (TimeoutError, httpx.HTTPError):
        return
