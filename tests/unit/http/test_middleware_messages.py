"""The middleware message by message: disconnects, parts, and when each event leaves."""

from __future__ import annotations

import json
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from server.http import body
from server.http.body import MAX_BODY_BYTES
from server.http.exchange import current_exchange
from server.http.middleware import RiverMiddleware
from tests.unit.http.support import call, chunk, compact, payloads, river_state, scope, sse

CHAT = "/v1/chat/completions"


def raw_scope(state: Any) -> dict[str, Any]:
    return scope(CHAT, app_state=SimpleNamespace(river=state))


def test_a_disconnect_reaches_the_application() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            seen.append((await receive())["type"])

    messages = [
        {"type": "http.request", "body": b'{"river":', "more_body": True},
        {"type": "http.request", "body": b" {}}", "more_body": False},
        {"type": "http.disconnect"},
    ]
    call(RiverMiddleware(app), raw_scope(river_state()), messages)
    assert seen == ["http.request", "http.disconnect"]


def test_a_client_that_leaves_while_it_sends_is_answered_with_nothing() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("called")

    messages = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    assert call(RiverMiddleware(app), raw_scope(river_state()), messages) == []


def test_a_complete_answer_may_come_in_parts() -> None:
    body = compact({"object": "text_completion", "choices": []})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body[:9], "more_body": True})
        await send({"type": "http.response.body", "body": body[9:]})

    message = {"type": "http.request", "body": b"{}"}
    start, answer = call(RiverMiddleware(app), raw_scope(river_state()), [message])
    assert json.loads(answer["body"])["river"]["tokens"] == 0
    assert dict(start["headers"])[b"content-length"] == str(len(answer["body"])).encode()


def test_stream_events_are_sent_on_one_by_one() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in (sse(chunk()), sse(chunk(finish="stop")), b"data: [DONE]\n\n"):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    message = {"type": "http.request", "body": b"{}"}
    sent = call(RiverMiddleware(app), raw_scope(river_state()), [message])
    bodies = [m["body"] for m in sent[1:]]
    assert bodies[0] == sse(chunk())
    assert bodies[1].startswith(b"data: {") and bodies[1].endswith(b"data: [DONE]\n\n")
    assert bodies[2:] == [b""]
    assert [m["more_body"] for m in sent[1:]] == [True, True, False]


def test_a_stream_that_ends_without_done_gets_its_report() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        event = sse(chunk(finish="stop"))
        await send({"type": "http.response.body", "body": event, "more_body": False})

    message = {"type": "http.request", "body": b"{}"}
    _, last = call(RiverMiddleware(app), raw_scope(river_state()), [message])
    assert payloads(last["body"])[0]["river"]["tokens"] == 0


@pytest.mark.parametrize("fails", [False, True])
def test_the_exchange_ends_with_its_request(fails: bool) -> None:
    """A connection's next request may run in the same context."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert current_exchange.get() is not None
        if fails:
            raise ZeroDivisionError

    async def around(scope: Any, receive: Any, send: Any) -> None:
        with suppress(ZeroDivisionError):
            await RiverMiddleware(app)(scope, receive, send)
        assert current_exchange.get() is None

    message = {"type": "http.request", "body": b"{}"}
    call(around, raw_scope(river_state()), [message])


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_is_read_no_further_than_any_may_be(announced: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("called")

    parts = (MAX_BODY_BYTES >> 20) + 1
    messages = [{"type": "http.request", "body": b" " * (1 << 20), "more_body": True}] * parts
    request = raw_scope(river_state())
    if announced:
        messages = []
        request["headers"] = [(b"content-length", str(MAX_BODY_BYTES + 1).encode())]
    start, answer = call(RiverMiddleware(app), request, messages)
    error = json.loads(answer["body"])["error"]
    assert start["status"] == error["code"] == 413
    assert f"at most {MAX_BODY_BYTES} bytes" in error["message"]


def test_where_no_river_is_served_bodies_are_vllms_business(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body, "MAX_BODY_BYTES", 10)
    read: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        read.append((await receive())["body"])

    sent = json.dumps({"prompt": "x" * 100}).encode()
    call(RiverMiddleware(app), raw_scope(None), [{"type": "http.request", "body": sent}])
    assert read == [sent]
