"""The field in and the report out, around a small app."""

from __future__ import annotations

import json
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.http import body as body_module
from server.http.body import MAX_BODY_BYTES, MAX_DEPTH
from server.http.exchange import GENERATING, OTHERS, current_exchange
from server.http.middleware import RiverMiddleware
from tests.unit.http.support import call, compact, fetch, river_state, scope

CHAT = "/v1/chat/completions"


class App:
    """Plays vLLM: remembers what reaches it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.exchanges: list[Any] = []
        paths = (*GENERATING, *OTHERS, "/tokenize")
        self.asgi = Starlette(
            routes=[Route(p, self.endpoint, methods=["GET", "POST"]) for p in paths]
        )
        self.asgi.state.river = river_state()
        self.asgi.add_middleware(RiverMiddleware)

    async def endpoint(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        self.headers.append(request.headers)
        exchange = current_exchange.get()
        self.exchanges.append(exchange)
        if exchange is not None:
            exchange.add(0, np.array([-12, 3], dtype=np.int16))
        return JSONResponse({"object": "chat.completion", "choices": []})

    def post(self, body: Any, path: str = CHAT) -> httpx.Response:
        content = body if isinstance(body, bytes) else compact(body)
        return fetch(self.asgi, "POST", path, content=content)


@pytest.fixture
def app() -> App:
    return App()


@pytest.mark.parametrize("path", GENERATING)
def test_the_field_does_not_reach_vllm_and_the_length_is_right(app: App, path: str) -> None:
    response = app.post({"model": "å", "river": {"threshold": 0.5}}, path)
    assert json.loads(app.bodies[0]) == {"model": "å"}
    assert int(app.headers[0]["content-length"]) == len(app.bodies[0])
    assert app.exchanges[0].settings.threshold == 0.5
    assert response.json()["river"]["threshold"] == 0.5
    assert response.json()["river"]["exit_layers"] == {"3": 1}
    assert int(response.headers["content-length"]) == len(response.content)


@pytest.mark.parametrize(("path", "param"), [(CHAT, "river.threshold"), (OTHERS[0], "river")])
def test_a_wrong_field_never_reaches_vllm(app: App, path: str, param: str) -> None:
    response = app.post({"river": {"threshold": 7}}, path)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert app.bodies == []
    assert ("river" in app.post({"model": "m"}, path).json()) == (path == CHAT)


def test_a_body_without_the_field_passes_byte_for_byte_and_is_reported_on(app: App) -> None:
    raw = b'{ "model" : "m",\n "x": 1.0 }'
    response = app.post(raw)
    assert app.bodies == [raw]
    assert response.json()["river"]["threshold"] == 0.9


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("POST", "/tokenize")])
def test_other_requests_are_not_looked_at(app: App, method: str, path: str) -> None:
    raw = compact({"river": {"threshold": 7}})
    response = fetch(app.asgi, method, path, content=raw)
    assert (response.status_code, app.bodies) == (200, [raw])
    assert "river" not in response.json()


def test_a_server_without_a_river_refuses_the_field_and_only_that(app: App) -> None:
    app.asgi.state.river = None
    response = app.post({"river": {}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "river")
    assert "river" not in app.post({"model": "m"}).json()
    assert app.bodies == [b'{"model":"m"}']


HUGE = b"1" + b"0" * 30
IMPOSSIBLE = [
    (b'{"river": {"min_layers": %s}}' % HUGE, "river.min_layers"),
    *((b'{"logit_bias": {"5": -Infinity}}', "logit_bias.5"), (b'{"\\ud800": NaN}', "\ud800")),
    ('{"temperature": NaN}'.encode("utf-16"), "temperature"),
    (b'{"vllm_xargs": {"x": [%s]}}' % HUGE, "vllm_xargs.x.0"),
    (b'{"stop_token_ids": [1, -9223372036854775809]}', "stop_token_ids.1"),
    *((f'{{"top_k": {HUGE.decode()}}}'.encode(c), "top_k") for c in ("utf-16-be", "utf-32-le")),
    (b'{"kv_transfer_params": {"a": {"b": [%s]}}}' % HUGE, "kv_transfer_params.a.b.0"),
]
"""Others are among the bad requests of ``tests/support/poison.py``."""


@pytest.mark.parametrize(("body", "param"), IMPOSSIBLE, ids=[p for _, p in IMPOSSIBLE])
def test_numbers_that_no_engine_takes_are_refused_by_name(app: App, body: bytes, param: str):
    response = app.post(body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert app.bodies == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "NaN and Infinity, 1e999, 99999999999999999999"}',
        b'{"seed": 9223372036854775807, "top_k": 18446744073709551615, "temperature": 1e-999}',
        b'{"response_format": {"json_schema": {"schema": {"maximum": %s}}}}' % HUGE,
    ],
    ids=["text", "limits", "schema"],
)
def test_text_that_only_looks_like_such_numbers_passes(app: App, body: bytes) -> None:
    assert app.post(body).status_code == 200
    assert app.bodies == [body]


def nested(levels: int) -> bytes:
    """``levels`` lists and objects inside each other, the body's own among them."""
    return b'{"a": ' + b'{"b": [' * (levels // 2) + b"1" + b"]}" * (levels // 2) + b"}"


def test_levels_that_nobody_can_follow_are_refused_before_vllm(app: App) -> None:
    beside = compact({"messages": [{"content": []}] * 500, "text": "[{" * 500})
    for body in (nested(MAX_DEPTH - 1), beside):
        assert app.post(body).status_code == 200
    for levels in (MAX_DEPTH, 900):
        response = app.post(nested(levels))
        assert (response.status_code, response.json()["error"]["param"][:7]) == (400, "a.b.0.b")
    assert len(app.bodies) == 2


def test_a_server_that_is_ending_takes_nothing_new_and_closes_its_connections(app: App) -> None:
    """What asks again by the same one would meet this server again."""
    assert "connection" not in app.post({}).headers
    app.asgi.state.river.ending.begin(failed=False)
    refused = app.post({"model": "a"})
    assert refused.status_code == refused.json()["error"]["code"] == 503
    assert len(app.bodies) == 1
    for response in (refused, app.post({}, "/tokenize"), fetch(app.asgi, "GET", "/tokenize")):
        assert response.headers["connection"] == "close"


EMPTY = {"type": "http.request", "body": b"{}"}


def raw_scope(state: Any) -> dict[str, Any]:
    return scope(CHAT, app_state=SimpleNamespace(river=state))


async def uncalled(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("called")


def test_a_client_that_leaves_while_it_sends_is_answered_with_nothing() -> None:
    messages = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    assert call(RiverMiddleware(uncalled), raw_scope(river_state()), messages) == []


def test_a_complete_answer_may_come_in_parts() -> None:
    body = compact({"object": "text_completion", "choices": []})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body[:9], "more_body": True})
        await send({"type": "http.response.body", "body": body[9:]})

    start, answer = call(RiverMiddleware(app), raw_scope(river_state()), [EMPTY])
    assert json.loads(answer["body"])["river"]["tokens"] == 0
    assert dict(start["headers"])[b"content-length"] == str(len(answer["body"])).encode()


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

    call(around, raw_scope(river_state()), [EMPTY])


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_is_read_no_further_than_any_may_be(announced: bool) -> None:
    parts = (MAX_BODY_BYTES >> 20) + 1
    messages = [{"type": "http.request", "body": b" " * (1 << 20), "more_body": True}] * parts
    request = raw_scope(river_state())
    if announced:
        messages = []
        request["headers"] = [(b"content-length", str(MAX_BODY_BYTES + 1).encode())]
    start, answer = call(RiverMiddleware(uncalled), request, messages)
    assert start["status"] == json.loads(answer["body"])["error"]["code"] == 413


def test_where_no_river_is_served_bodies_are_vllms_business(monkeypatch) -> None:
    monkeypatch.setattr(body_module, "MAX_BODY_BYTES", 10)
    read: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        read.append((await receive())["body"])

    sent = json.dumps({"prompt": "x" * 100}).encode()
    call(RiverMiddleware(app), raw_scope(None), [{"type": "http.request", "body": sent}])
    assert read == [sent]
