"""Keys guard every route that vLLM's own application has, whatever vLLM adds to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import product
from typing import Any

import httpx
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from server.cli.serve import AUTH_MIDDLEWARE
from server.http import body
from server.http.auth import PUBLIC
from server.http.field import GENERATING, OTHERS
from tests.unit.http.support import call, fetch, river_state
from tests.unit.http.vllm_app import vllm_app

KEY, METRICS_KEY = "right-key", "metrics-key"
HEADERS: dict[str, dict[str, str]] = {
    "none": {},
    "empty": {"Authorization": ""},
    "wrong key": {"Authorization": "Bearer wrong-key"},
    "no key": {"Authorization": "Bearer "},
    "wrong scheme": {"Authorization": f"Basic {KEY}"},
    "bare key": {"Authorization": KEY},
    "another header": {"X-API-Key": KEY, "api-key": KEY},
}


@pytest.fixture(scope="module")
def app() -> Iterator[Any]:
    """As River's own command starts it."""
    with vllm_app("--api-key", KEY, "--middleware", AUTH_MIDDLEWARE) as made:
        made.state.args.metrics_keys = [METRICS_KEY]
        yield made


def _routes(routes: list[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Method and path of everything that can be reached, parameters filled in."""
    for route in routes:
        if isinstance(route, Mount):
            # What is mounted answers any method, as it likes.
            yield "GET", prefix + route.path
            yield "OPTIONS", prefix + route.path
            yield from _routes(list(route.routes or ()), prefix + route.path)
        elif isinstance(route, Route):
            path = prefix + route.path.replace("{response_id}", "x").replace("{path:path}", "x")
            for method in sorted(route.methods or {"GET"}):
                yield method, path
        elif isinstance(route, WebSocketRoute):
            yield "WEBSOCKET", prefix + route.path
        else:
            raise AssertionError(f"a route of an unknown kind: {route!r}")


def _statuses(app: Any, requests: list[tuple[str, str]], headers: dict[str, str]) -> list[int]:
    async def run() -> list[int]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://river") as client:
            answers = [await client.request(m, p, headers=headers) for m, p in requests]
        for answer in answers:
            if answer.status_code == 401 and answer.request.method != "HEAD":
                assert answer.json()["error"]["code"] == 401
        return [answer.status_code for answer in answers]

    return asyncio.run(run())


def test_the_walk_meets_every_kind_of_route(app: Any) -> None:
    found = set(_routes(app.routes))
    assert {
        *(("POST", f"/v1/{path}") for path in ("chat/completions", "completions", "responses")),
        *(("POST", path) for path in ("/invocations", "/collective_rpc", "/sleep", "/tokenize")),
        *(("GET", path) for path in ("/metrics", "/docs", "/openapi.json", "/ping", "/river")),
        ("PATCH", "/river"),
        ("WEBSOCKET", "/v1/realtime"),
    } <= found
    assert len(found) > 50


@pytest.mark.parametrize("kind", HEADERS)
def test_no_route_opens_without_the_key(app: Any, kind: str) -> None:
    guarded = [r for r in _routes(app.routes) if r[0] != "WEBSOCKET" and r[1] not in PUBLIC]
    statuses = _statuses(app, guarded, HEADERS[kind])
    assert [r for r, s in zip(guarded, statuses, strict=True) if s != 401] == []


def test_the_public_list_opens_without_a_key(app: Any) -> None:
    public = [r for r in _routes(app.routes) if r[1] in PUBLIC]
    assert {path for _, path in public} == PUBLIC
    assert 401 not in _statuses(app, public, {})


def test_a_metrics_key_reads_three_routes_and_opens_nothing_else(app: Any) -> None:
    guarded = [r for r in _routes(app.routes) if r[0] != "WEBSOCKET" and r[1] not in PUBLIC]
    statuses = _statuses(app, guarded, {"Authorization": f"Bearer {METRICS_KEY}"})
    opened = {r for r, s in zip(guarded, statuses, strict=True) if s != 401}
    assert opened == {("GET", path) for path in ("/metrics", "/river", "/river/stats")}


def test_the_right_key_opens_the_door(app: Any) -> None:
    """What stands behind it needs an engine; that it was reached is enough."""
    right = {"Authorization": f"Bearer {KEY}"}
    reading = [r for r in _routes(app.routes) if r[0] == "GET"]
    assert 401 not in _statuses(app, reading, right)


def test_websockets_are_closed_without_the_key(app: Any) -> None:
    paths = [path for method, path in _routes(app.routes) if method == "WEBSOCKET"]
    assert paths
    for path, headers in product(paths, HEADERS.values()):
        raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
        scope = {
            **{"type": "websocket", "path": path, "raw_path": path.encode(), "headers": raw},
            **{"query_string": b"", "root_path": "", "subprotocols": [], "scheme": "ws"},
        }
        sent = call(app, scope, [{"type": "websocket.connect"}])
        assert [message["type"] for message in sent] == ["websocket.close"], path


GENERATE_NOTHING = (
    *("/tokenize", "/detokenize", "/v1/messages/count_tokens", "/ping", "/river/console"),
    *("/v1/chat/completions/derender", "/v1/completions/derender", "/v1/responses/x/cancel"),
    *("/inference/v1/abort_requests", "/scale_elastic_ep", "/is_scaling_elastic_ep"),
    # What River refuses to serve: other models' tasks.
    *("/v1/audio/transcriptions", "/v1/audio/translations"),
    # Development mode.
    *("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/collective_rpc"),
    *("/sleep", "/wake_up", "/release_kv_cache_memory", "/pause", "/resume", "/abort_requests"),
    *("/init_weight_transfer_engine", "/shutdown_weight_transfer_engine", "/update_weights"),
    *("/start_weight_update", "/start_draft_weight_update", "/finish_weight_update"),
    *("/update_weight_version", "/weight_checker"),
)
"""Routes for which a ``river`` field means nothing."""


@pytest.mark.parametrize("path", [*GENERATING, "/tokenize"])
def test_a_body_that_is_too_long_is_refused(
    app: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "MAX_BODY_BYTES", 1000)
    monkeypatch.setattr(app.state, "river", river_state(), raising=False)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    response = fetch(app, "POST", path, headers=headers, content=b" " * 1001)
    assert response.status_code == response.json()["error"]["code"] == 413


def test_every_route_that_generates_knows_the_field(app: Any) -> None:
    """A route that vLLM adds must be one of these, or the field would be ignored there."""
    posts = {path for method, path in _routes(app.routes) if method == "POST"}
    assert posts - {*GENERATING, *OTHERS} == set(GENERATE_NOTHING)
