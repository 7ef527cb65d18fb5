"""A stream's start waits for the engine's first word, so that a refusal has the status of one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, Never

import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.middleware import Middleware
from starlette.responses import StreamingResponse

from server.http.middleware import RiverMiddleware
from server.http.report import Reporter
from tests.unit.http.support import L, chunk, exchange, fetch, payloads, river_state, scope, sse

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


@pytest.mark.parametrize("first", [sse(chunk()), b": keep-alive\n\n"])
def test_a_stream_starts_with_its_first_event_or_comment_and_not_before(first: bytes) -> None:
    assert run(START) == run(START, body(b"")) == []
    sent = run(START, body(first), body(spaced(error())))
    assert sent[0] == START
    assert sent[1]["body"] == first


@pytest.mark.parametrize("code", [None, "400", 200, 999])
def test_an_error_without_a_status_stays_an_event(code: Any) -> None:
    sent = run(START, body(spaced(error(code))), body(DONE, more=False))
    assert sent[0] == START
    assert payloads(b"".join(m["body"] for m in sent[1:])) == [error(code)]


def test_a_stream_without_events_starts_when_it_ends() -> None:
    assert run(START, body(b"", more=False)) == [START, body(b"", more=False)]


CREATED = b'event: response.created\ndata: {"type":"response.created"}\n\n'
IN_PROGRESS = b'event: response.in_progress\ndata: {"type":"response.in_progress"}\n\n'
DELTA = b'event: response.output_text.delta\ndata: {"delta":"x"}\n\n'


def test_a_stream_of_the_responses_api_starts_after_its_opening() -> None:
    assert run(START, body(CREATED), body(IN_PROGRESS)) == []
    sent = run(START, body(CREATED), body(IN_PROGRESS), body(DELTA), body(DELTA))
    assert sent == [START, body(CREATED + IN_PROGRESS + DELTA), body(DELTA)]
    assert run(START, body(CREATED), body(b"", more=False)) == [START, body(CREATED, more=False)]


def responses(*events: bytes, fails: Callable[[], Never]) -> FastAPI:
    """An application with vLLM's handlers, whose stream has these events and then an error."""
    from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

    async def stream() -> AsyncIterator[bytes]:
        for event in events:
            yield event
        fails()

    app = FastAPI()
    app.state.river = river_state()
    app.state.args = SimpleNamespace(log_error_stack=False)
    app.state.server = SimpleNamespace(should_exit=False)
    app.state.engine_client = SimpleNamespace(errored=True, is_running=False)
    app.post("/v1/responses")(
        lambda: StreamingResponse(stream(), media_type="text/event-stream; charset=utf-8")
    )
    app.user_middleware.append(Middleware(RiverMiddleware))
    init_exception_handler(app)
    return app


def refuse() -> Never:
    from vllm.exceptions import VLLMValidationError

    raise VLLMValidationError("out of vocabulary", parameter="logit_bias")


def misuse() -> Never:
    """As vLLM fails in writing an engine's error as an event."""
    TypeAdapter(int).validate_json('{"error": {}}')
    raise AssertionError("taken")


@pytest.mark.parametrize(
    ("events", "fails"),
    [((CREATED, IN_PROGRESS, DELTA), refuse), ((CREATED, IN_PROGRESS), misuse)],
    ids=["too late", "no refusal"],
)
def test_other_errors_are_raised_on(events: tuple[bytes, ...], fails: Callable[[], Never]) -> None:
    with pytest.raises(RuntimeError, match="already started"):
        fetch(responses(*events, fails=fails), "POST", "/v1/responses", json={"input": "Hi"})
