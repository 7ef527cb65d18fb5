"""Who may call what."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from uvicorn import Config
from uvicorn.lifespan.on import LifespanOn

from server.http import auth
from server.http.auth import PUBLIC, RiverAuthMiddleware
from server.telemetry.ending import Ending
from tests.unit.http.support import call, fetch, scope

KEYS = ["first-key", "second-key"]
PUBLIC_PATHS = ("/health", "/ready", "/version")
GUARDED = (
    "/v1/chat/completions",
    "/v1/models",
    "/river",
    "/river/stats",
    "/river/console",
    "/metrics",
    "/metrics/",
    "/docs",
    "/openapi.json",
    "/tokenize",
    "/invocations",
    "/ping",
    "/health/",
    "/Health",
    "/healthz",
    "//health",
    "/v1/health",
    "/nothing",
    "/",
)


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def app(keys: list[str] | None = None, open_metrics: bool = False) -> Starlette:
    methods = ["GET", "POST", "OPTIONS"]
    made = Starlette(routes=[Route("/{path:path}", hello, methods=methods)])
    made.state.args = SimpleNamespace(api_key=keys, river_open_metrics=open_metrics)
    made.state.river = object()
    made.add_middleware(RiverAuthMiddleware)
    return made


def get(path: str, header: str | None = None, **options: Any) -> httpx.Response:
    headers = {} if header is None else {"Authorization": header}
    return fetch(app(KEYS, **options), "GET", path, headers=headers)


def test_the_public_list_is_the_documented_one() -> None:
    assert set(PUBLIC_PATHS) == PUBLIC


@pytest.mark.parametrize("path", PUBLIC_PATHS)
def test_public_paths_need_no_key(path: str) -> None:
    assert get(path).status_code == 200
    assert get(path, "Bearer wrong").status_code == 200


@pytest.mark.parametrize("path", GUARDED)
def test_every_other_path_needs_one(path: str) -> None:
    response = get(path)
    assert response.status_code == 401
    error = response.json()["error"]
    assert (error["code"], error["type"]) == (401, "UnauthorizedError")
    assert response.headers["www-authenticate"] == "Bearer"
    assert get(path, f"Bearer {KEYS[0]}").text == "hello"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer first-key2",
        "Bearer first-ke",
        "Bearer FIRST-KEY",
        "Bearer first-key second-key",
        "first-key",
        "Basic first-key",
        "Token first-key",
        "Bearerfirst-key",
        "Bearer first-key,",
    ],
)
def test_wrong_keys_and_schemes(header: str) -> None:
    assert get("/v1/models", header).status_code == 401


@pytest.mark.parametrize(
    "header", ["Bearer first-key", "Bearer second-key", "bearer first-key", "BEARER  second-key "]
)
def test_any_key_will_do_in_any_spelling_of_the_scheme(header: str) -> None:
    assert get("/v1/models", header).status_code == 200


def test_every_key_is_compared_whichever_one_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of an answer must not tell which key was close."""
    compared: list[bool] = []
    original = auth.secrets.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(original(a, b))
        return compared[-1]

    monkeypatch.setattr(auth.secrets, "compare_digest", compare)
    assert get("/v1/models", f"Bearer {KEYS[0]}").status_code == 200
    assert compared == [True, False]


def test_a_key_that_is_no_ascii_is_refused_and_not_a_crash() -> None:
    request = scope("/v1/models", headers=[(b"authorization", b"Bearer \xff\xfe")])
    request["app"] = app(KEYS)
    sent = call(RiverAuthMiddleware(hello), request, [])
    assert sent[0]["status"] == 401


@pytest.mark.parametrize("keys", [None, [], [""]])
def test_without_a_key_every_route_is_open(keys: list[str] | None) -> None:
    assert fetch(app(keys), "GET", "/v1/models").status_code == 200


def test_an_empty_key_opens_nothing_beside_a_real_one() -> None:
    made = app(["", "real"])
    for header in ("Bearer ", "Bearer"):
        response = fetch(made, "GET", "/v1/models", headers={"Authorization": header})
        assert response.status_code == 401


def test_metrics_can_be_opened_and_nothing_beside_them() -> None:
    assert get("/metrics", open_metrics=True).status_code == 200
    assert get("/metrics2", open_metrics=True).status_code == 401
    assert get("/river", open_metrics=True).status_code == 401


def test_a_preflight_request_needs_no_key() -> None:
    asks = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}
    assert fetch(app(KEYS), "OPTIONS", "/v1/models", headers=asks).status_code == 200


def test_any_other_options_request_needs_one() -> None:
    """What is mounted, as the metrics are, answers it as GET."""
    assert fetch(app(KEYS), "OPTIONS", "/v1/models").status_code == 401


@pytest.mark.parametrize(("path", "status"), [("/api/health", 200), ("/api/v1/models", 401)])
def test_a_root_path_is_taken_off(path: str, status: int) -> None:
    request = scope(path, root_path="/api", method="GET", query_string=b"")
    request["app"] = app(KEYS)

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("hello")(scope, receive, send)

    assert call(RiverAuthMiddleware(inner), request, [])[0]["status"] == status


def websocket(header: str | None) -> list[dict[str, Any]]:
    headers = [] if header is None else [(b"authorization", header.encode())]
    request = {"type": "websocket", "path": "/v1/realtime", "headers": headers, "app": app(KEYS)}

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    return call(RiverAuthMiddleware(inner), request, [{"type": "websocket.connect"}])


def test_a_websocket_needs_a_key_too() -> None:
    assert websocket("Bearer second-key") == [{"type": "websocket.accept"}]
    for header in (None, "Bearer wrong"):
        (closed,) = websocket(header)
        assert (closed["type"], closed["code"]) == ("websocket.close", 1008)


def started(state: Any, monkeypatch: pytest.MonkeyPatch) -> LifespanOn:
    """What uvicorn makes of the app's start, with vLLM's setting of it."""
    own = Ending()
    monkeypatch.setattr(auth, "ending", own)

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await RiverAuthMiddleware(inner)(
            {**scope, "app": SimpleNamespace(state=state)}, receive, send
        )

    async def run() -> LifespanOn:
        lifespan = LifespanOn(Config(app, lifespan="auto", log_config=None))
        await lifespan.startup()
        return lifespan

    lifespan = asyncio.run(run())
    assert own.failed is lifespan.should_exit
    return lifespan


def test_an_app_that_rivers_plugin_has_not_reached_does_not_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for state in (SimpleNamespace(), SimpleNamespace(river=None)):
        assert started(state, monkeypatch).should_exit
    assert "River is not active in this server" in caplog.text
    assert not started(SimpleNamespace(river=object()), monkeypatch).should_exit
