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
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from server.http import body as body_module
from server.http.body import MAX_BODY_BYTES
from server.http.exchange import current_exchange
from server.http.field import GENERATING, OTHERS
from server.http.limits import MAX_DEPTH
from server.http.middleware import RiverMiddleware
from tests.unit.http.support import call, chunk, compact, fetch, river_state, scope, sse

CHAT = "/v1/chat/completions"


class App:
    """Plays vLLM: remembers what reaches it and answers as ``answer`` says."""

    def __init__(self, state: Any = None) -> None:
        self.answer: Response | None = None
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.exchanges: list[Any] = []
        routes = [
            Route(path, self.endpoint, methods=["GET", "POST"])
            for path in (*GENERATING, *OTHERS, "/tokenize")
        ]
        self.asgi = Starlette(routes=routes)
        self.asgi.state.river = river_state() if state is None else state
        self.asgi.add_middleware(RiverMiddleware)

    async def endpoint(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        self.headers.append(request.headers)
        exchange = current_exchange.get()
        self.exchanges.append(exchange)
        if exchange is not None:
            exchange.add(0, np.array([-12, 3], dtype=np.int16))
        return self.answer or JSONResponse({"object": "chat.completion", "choices": []})

    def post(self, body: Any, path: str = CHAT, **options: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else compact(body)
        return fetch(self.asgi, "POST", path, content=content, **options)


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


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'"river"', b"null"])
def test_what_is_no_object_is_left_to_vllm(app: App, raw: bytes) -> None:
    assert app.post(raw).status_code == 200
    assert app.bodies == [raw]
    assert app.exchanges == [None]


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("POST", "/tokenize")])
def test_other_requests_are_not_looked_at(app: App, method: str, path: str) -> None:
    raw = compact({"river": {"threshold": 7}})
    response = fetch(app.asgi, method, path, content=raw)
    assert (response.status_code, app.bodies) == (200, [raw])
    assert "river" not in response.json()


def test_a_server_without_a_river_refuses_the_field_and_only_that() -> None:
    app = App(state=False)
    app.asgi.state.river = None
    response = app.post({"river": {}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "river")
    assert "river" not in app.post({"model": "m"}).json()
    assert app.bodies == [b'{"model":"m"}']


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"error": {"code": 404}}, status_code=404),
        JSONResponse({"detail": "no"}, status_code=422),
        PlainTextResponse("text"),
        Response(status_code=200),
    ],
    ids=["error", "detail", "text", "empty"],
)
def test_other_answers_pass_as_they_are(app: App, answer: Response) -> None:
    app.answer = answer
    response = app.post({"model": "m"})
    assert (response.status_code, response.content) == (answer.status_code, answer.body)


HUGE = b"1" + b"0" * 30
IMPOSSIBLE = [
    *((b'{"temperature": NaN}', "temperature"), (b'{"\\ud800": NaN}', "\ud800")),
    *((b'{"river": {"threshold": NaN}}', "river.threshold"), (b'{"top_k": %s}' % HUGE, "top_k")),
    (b'{"river": {"min_layers": %s}}' % HUGE, "river.min_layers"),
    (b'{"logit_bias": {"5": -Infinity}}', "logit_bias.5"),
    (b'{"messages": [{"content": 1e999}]}', "messages.0.content"),
    (b'{"top_k": 18446744073709551616}', "top_k"),
    (b'{"stop_token_ids": [1, -9223372036854775809]}', "stop_token_ids.1"),
    ('{"temperature": NaN}'.encode("utf-16"), "temperature"),
    *((f'{{"top_k": {HUGE.decode()}}}'.encode(c), "top_k") for c in ("utf-16-be", "utf-32-le")),
    (b'{"vllm_xargs": {"x": [%s]}}' % HUGE, "vllm_xargs.x.0"),
    (b'{"kv_transfer_params": {"a": {"b": [%s]}}}' % HUGE, "kv_transfer_params.a.b.0"),
]


@pytest.mark.parametrize(("body", "param"), IMPOSSIBLE, ids=[p for _, p in IMPOSSIBLE])
def test_numbers_that_no_engine_takes_are_refused_by_name(
    app: App, body: bytes, param: str
) -> None:
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


@pytest.mark.parametrize(
    "body",
    [b'{"prompt": "\xff"}', b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}"],
    ids=["no UTF-8", "too deep", "a number of 5000 digits"],
)
def test_a_body_that_cannot_be_read_gets_an_error_object(app: App, body: bytes) -> None:
    response = app.post(body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "body"
    assert app.bodies == []


EMPTY = {"type": "http.request", "body": b"{}"}


def raw_scope(state: Any) -> dict[str, Any]:
    return scope(CHAT, app_state=SimpleNamespace(river=state))


def test_a_body_comes_in_parts_and_its_disconnect_after_it() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            seen.append((await receive())["type"])

    parts = (b'{"river":', b"", b" {}}")
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts[:2]]
    messages += [{"type": "http.request", "body": parts[2]}, {"type": "http.disconnect"}]
    call(RiverMiddleware(app), raw_scope(river_state()), messages)
    assert seen == ["http.request", "http.disconnect"]


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


def test_stream_events_are_sent_on_one_by_one() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for event in (sse(chunk()), sse(chunk(finish="stop")), b"data: [DONE]\n\n"):
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    sent = call(RiverMiddleware(app), raw_scope(river_state()), [EMPTY])
    bodies = [m["body"] for m in sent[1:]]
    assert bodies[0] == sse(chunk())
    assert bodies[1].startswith(b"data: {") and bodies[1].endswith(b"data: [DONE]\n\n")
    assert bodies[2:] == [b""]
    assert [m["more_body"] for m in sent[1:]] == [True, True, False]


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


def test_where_no_river_is_served_bodies_are_vllms_business(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body_module, "MAX_BODY_BYTES", 10)
    read: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        read.append((await receive())["body"])

    sent = json.dumps({"prompt": "x" * 100}).encode()
    call(RiverMiddleware(app), raw_scope(None), [{"type": "http.request", "body": sent}])
    assert read == [sent]
