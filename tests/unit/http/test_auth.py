"""Who may call what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from server.http import auth
from server.http.auth import RiverAuthMiddleware
from server.telemetry.progress import Ending
from tests.unit.http.support import call, fetch, scope

KEYS = ["first-key", "second-key"]
GUARDED = (
    "/",
    "/v1/models",
    "/metrics",
    "/health/",
    "/Health",
    "/healthz",
    "//health",
    "/v1/health",
)
"""Every route of vLLM's own application is in ``test_every_route.py``."""


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def app(keys: list[str] | None = None, open_metrics: bool = False) -> Starlette:
    methods = ["GET", "POST", "OPTIONS"]
    made = Starlette(routes=[Route("/{path:path}", hello, methods=methods)])
    made.state.args = SimpleNamespace(api_key=keys, river_open_metrics=open_metrics)
    made.state.river = object()
    made.add_middleware(RiverAuthMiddleware)
    return made


def get(path: str, header: str | bytes | None = None, **options: Any) -> httpx.Response:
    headers = {} if header is None else {"Authorization": header}
    return fetch(app(KEYS, **options), "GET", path, headers=headers)


@pytest.mark.parametrize("path", GUARDED)
def test_every_other_path_needs_one(path: str) -> None:
    response = get(path)
    assert response.status_code == response.json()["error"]["code"] == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert get(path, f"Bearer {KEYS[0]}").text == "hello"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (401, ["", "Bearer", "Bearer ", "Bearerfirst-key", "first-key", "Basic first-key"]),
        (401, ["Bearer first-key2", "Bearer first-ke", "Bearer FIRST-KEY", "Bearer first-key,"]),
        (401, ["Bearer wrong", "Bearer first-key second-key", b"Bearer \xff\xfe"]),
        (200, ["Bearer first-key", "bearer second-key", "BEARER  second-key "]),
    ],
)
def test_a_whole_key_after_the_scheme_in_any_spelling(status: int, headers: list[Any]) -> None:
    for header in headers:
        assert get("/v1/models", header).status_code == status, header


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


def test_of_options_requests_a_preflight_alone_needs_no_key() -> None:
    """What is mounted, as the metrics are, answers any other as GET."""
    asks = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}
    assert fetch(app(KEYS), "OPTIONS", "/v1/models", headers=asks).status_code == 200
    assert fetch(app(KEYS), "OPTIONS", "/v1/models").status_code == 401


async def inner_app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await PlainTextResponse("hello")(scope, receive, send)


@pytest.mark.parametrize(("path", "status"), [("/api/health", 200), ("/api/v1/models", 401)])
def test_a_root_path_is_taken_off(path: str, status: int) -> None:
    request = scope(path, root_path="/api", method="GET", query_string=b"", app=app(KEYS))
    assert call(RiverAuthMiddleware(inner_app), request, [])[0]["status"] == status


@pytest.mark.parametrize(
    ("header", "answer"),
    [(b"Bearer second-key", "accept"), (b"Bearer wrong", "close"), (b"", "close")],
)
def test_a_websocket_needs_a_key_too(header: bytes, answer: str) -> None:
    headers = [(b"authorization", header)]
    request = {"type": "websocket", "path": "/v1/realtime", "headers": headers, "app": app(KEYS)}
    sent = call(RiverAuthMiddleware(inner_app), request, [{"type": "websocket.connect"}])
    assert [message["type"] for message in sent] == [f"websocket.{answer}"]


@pytest.mark.parametrize("river", [None, object()])
def test_an_app_that_rivers_plugin_has_not_reached_does_not_start(
    river: object | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Ending()
    monkeypatch.setattr(auth, "ending", own)

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})

    made = SimpleNamespace(state=SimpleNamespace(river=river))
    middleware = RiverAuthMiddleware(inner)
    sent = call(middleware, {"type": "lifespan", "app": made}, [{"type": "lifespan.startup"}])
    assert sent[0]["type"] == f"lifespan.startup.{'complete' if river else 'failed'}"
    assert own.failed is (river is None)
