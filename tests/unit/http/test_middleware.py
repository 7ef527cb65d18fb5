"""The field in and the report out, around a small app."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from server.http.exchange import current_exchange
from server.http.field import GENERATING, OTHERS
from server.http.limits import MAX_DEPTH
from server.http.middleware import RiverMiddleware
from tests.unit.http.support import call, chunk, compact, fetch, payloads, river_state, scope, sse

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


def test_a_body_without_the_field_passes_byte_for_byte_and_is_reported_on(app: App) -> None:
    raw = b'{ "model" : "m",\n "x": 1.0 }'
    response = app.post(raw)
    assert app.bodies == [raw]
    assert response.json()["river"]["threshold"] == 0.9


def test_a_wrong_field_never_reaches_vllm(app: App) -> None:
    response = app.post({"river": {"threshold": 7}})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "river.threshold"
    assert "'threshold' = 7" in response.json()["error"]["message"]
    assert app.bodies == []


@pytest.mark.parametrize("path", OTHERS)
def test_endpoints_that_do_not_take_the_field(app: App, path: str) -> None:
    assert "river" not in app.post({"model": "m"}, path).json()
    assert app.exchanges == [None]
    response = app.post({"river": {}}, path)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "river")
    assert len(app.bodies) == 1


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


def test_a_root_path_is_taken_off(app: App) -> None:
    app.post({"river": {}})
    request = scope(
        "/api" + CHAT, app_state=app.asgi.state, root_path="/api", headers=[], method="POST"
    )
    body = {"type": "http.request", "body": b'{"river": {"threshold": 7}}'}
    sent = call(RiverMiddleware(app.asgi), request, [body])
    assert sent[0]["status"] == 400


def test_a_server_without_a_river_refuses_the_field_and_only_that() -> None:
    app = App(state=False)
    app.asgi.state.river = None
    response = app.post({"river": {}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "river")
    assert "river" not in app.post({"model": "m"}).json()
    assert app.bodies == [b'{"model":"m"}']


def test_a_stream_gets_the_report_in_its_last_chunk(app: App) -> None:
    events = [sse(chunk()), sse(chunk(finish="stop")), b"data: [DONE]\n\n"]
    app.answer = StreamingResponse(iter(events), media_type="text/event-stream; charset=utf-8")
    response = app.post({"stream": True})
    assert response.content.endswith(b"data: [DONE]\n\n")
    first, last = payloads(response.content)
    assert first == chunk()
    assert last["river"]["tokens"] == 1


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


def test_the_exchange_ends_with_the_request(app: App) -> None:
    app.post({"river": {"threshold": 0.5}})
    assert current_exchange.get() is None
    app.post({"model": "m"}, "/tokenize")
    assert app.exchanges[1] is None


IMPOSSIBLE = [
    (b'{"temperature": NaN}', "temperature"),
    (b'{"river": {"threshold": NaN}}', "river.threshold"),
    (b'{"river": {"min_layers": 1' + b"0" * 30 + b"}}", "river.min_layers"),
    (b'{"logit_bias": {"5": -Infinity}}', "logit_bias.5"),
    (b'{"messages": [{"content": 1e999}]}', "messages.0.content"),
    (b'{"top_k": 18446744073709551616}', "top_k"),
    (b'{"stop_token_ids": [1, -9223372036854775809]}', "stop_token_ids.1"),
    (b'{"river": {"threshold": 0.5}, "seed": 1' + b"0" * 400 + b"}", "seed"),
    (b'{"\\ud800": NaN}', "\ud800"),
    ('{"temperature": NaN}'.encode("utf-16"), "temperature"),
    (('{"top_k": 1' + "0" * 23 + "}").encode("utf-16-be"), "top_k"),
    (('{"top_k": 1' + "0" * 23 + "}").encode("utf-32-le"), "top_k"),
    (b'{"vllm_xargs": {"x": [1' + b"0" * 30 + b"]}}", "vllm_xargs.x.0"),
    (b'{"kv_transfer_params": {"a": {"b": [1' + b"0" * 30 + b"]}}}", "kv_transfer_params.a.b.0"),
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
        b'{"response_format": {"json_schema": {"schema": {"maximum": 1' + b"0" * 30 + b"}}}}",
    ],
    ids=["text", "limits", "schema"],
)
def test_text_that_only_looks_like_such_numbers_passes(app: App, body: bytes) -> None:
    assert app.post(body).status_code == 200
    assert app.bodies == [body]


def nested(levels: int, inner: bytes = b"1") -> bytes:
    """``levels`` lists and objects inside each other, the body's own among them."""
    return b'{"a": ' + b'{"b": [' * (levels // 2) + inner + b"]}" * (levels // 2) + b"}"


def test_levels_that_nobody_can_follow_are_refused_before_vllm(app: App) -> None:
    assert app.post(nested(MAX_DEPTH - 1)).status_code == 200
    for levels in (MAX_DEPTH, 900):
        response = app.post(nested(levels))
        error = response.json()["error"]
        assert (response.status_code, error["param"][:7]) == (400, "a.b.0.b")
        assert f"more than {MAX_DEPTH} levels" in error["message"]
    assert len(app.bodies) == 1


def test_many_values_side_by_side_are_not_deep(app: App) -> None:
    assert app.post({"messages": [{"content": []}] * 500, "text": "[{" * 500}).status_code == 200


def test_answers_of_a_server_that_is_ending_close_their_connections(app: App) -> None:
    """What asks again by the same one would meet this server again."""
    assert "connection" not in app.post({}).headers
    app.asgi.state.river.ending.begin(failed=False)
    for response in (app.post({}), app.post({}, "/tokenize"), fetch(app.asgi, "GET", "/tokenize")):
        assert response.headers["connection"] == "close"


def test_nothing_new_is_taken_while_the_server_is_ending(app: App) -> None:
    app.asgi.state.river.ending.begin(failed=False)
    response = app.post({"model": "a"})
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "ServiceUnavailableError"
    assert app.bodies == []


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
