"""A stream's start waits for its first event, so that a refusal has the status of one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from server.http.reporter import Reporter
from tests.unit.http.support import L, chunk, exchange, payloads, scope, sse

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}
DONE = b"data: [DONE]\n\n"


def error(code: Any = 400) -> dict[str, Any]:
    return {
        "error": {"message": "out of vocabulary", "type": "BadRequestError", "param": "prompt"}
        | {"code": code}
    }


def spaced(payload: Any) -> bytes:
    """As vLLM writes an error event: with Python's own separators."""
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def body(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def run(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def play() -> None:
        reporter = Reporter(exchange([-L, 3]), scope(), receive, send)
        for message in messages:
            await reporter(message)

    asyncio.run(play())
    return sent


@pytest.mark.parametrize("code", [400, 404, 503])
@pytest.mark.parametrize("write", [spaced, sse])
def test_a_refusal_as_the_first_event_is_a_plain_error(code: int, write: Any) -> None:
    sent = run(START, body(write(error(code))), body(DONE), body(b"", more=False))
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == code
    assert dict(sent[0]["headers"])[b"content-type"] == b"application/json"
    assert json.loads(sent[1]["body"]) == error(code)


def test_a_stream_starts_with_its_first_event_and_not_before() -> None:
    assert run(START) == []
    assert run(START, body(b"")) == []
    sent = run(START, body(sse(chunk())))
    assert sent[0] == START
    assert payloads(sent[1]["body"]) == [chunk()]


def test_a_keep_alive_comment_starts_a_stream_too() -> None:
    sent = run(START, body(b": keep-alive\n\n"), body(spaced(error())))
    assert sent[0] == START
    assert sent[1]["body"] == b": keep-alive\n\n"


def test_an_error_after_the_first_token_stays_an_event() -> None:
    sent = run(START, body(sse(chunk())), body(spaced(error(500))), body(DONE, more=False))
    assert sent[0] == START
    assert payloads(b"".join(m["body"] for m in sent[1:])) == [chunk(), error(500)]


@pytest.mark.parametrize("code", [None, "400", 200, 999])
def test_an_error_without_a_status_stays_an_event(code: Any) -> None:
    sent = run(START, body(spaced(error(code))), body(DONE, more=False))
    assert sent[0] == START
    assert payloads(b"".join(m["body"] for m in sent[1:])) == [error(code)]


def test_a_stream_without_events_starts_when_it_ends() -> None:
    assert run(START, body(b"", more=False)) == [START, body(b"", more=False)]
