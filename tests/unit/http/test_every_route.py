"""Keys guard every route that vLLM's own application has, whatever vLLM adds to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from server.cli.serve import AUTH_MIDDLEWARE
from server.http import body
from server.http.auth import PUBLIC
from server.http.exchange import GENERATING, OTHERS
from tests.unit.http.support import fetch, river_state
from tests.unit.http.vllm_app import vllm_app

KEY, METRICS_KEY = "right-key", "metrics-key"
RIGHT = {"Authorization": f"Bearer {KEY}"}
WRONG = {"Authorization": "Bearer wrong-key", "X-API-Key": KEY, "api-key": KEY}
"""Other headers are in ``test_auth.py``."""


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


@pytest.fixture(scope="module")
def routes(app: Any) -> list[tuple[str, str]]:
    """All but websockets; the walk meets every kind of them."""
    found = list(_routes(app.routes))
    assert {
        *(("POST", f"/v1/{path}") for path in ("chat/completions", "completions", "responses")),
        *(("POST", path) for path in ("/invocations", "/collective_rpc", "/sleep", "/tokenize")),
        *(("GET", path) for path in ("/metrics", "/docs", "/openapi.json", "/ping", "/river")),
        *(("PATCH", "/river"), ("WEBSOCKET", "/v1/realtime")),
    } <= set(found)
    return [route for route in found if route[0] != "WEBSOCKET"]


def _opened(app: Any, routes: list[tuple[str, str]], headers: dict[str, str]) -> set[Any]:
    statuses = _statuses(app, routes, headers)
    return {route for route, status in zip(routes, statuses, strict=True) if status != 401}


def test_without_the_key_only_the_public_list_opens(app: Any, routes: Any) -> None:
    public = {route for route in routes if route[1] in PUBLIC}
    assert {path for _, path in public} == PUBLIC
    for headers in ({}, WRONG):
        assert _opened(app, routes, headers) == public


def test_a_metrics_key_reads_three_routes_and_opens_nothing_else(app: Any, routes: Any) -> None:
    guarded = [route for route in routes if route[1] not in PUBLIC]
    opened = _opened(app, guarded, {"Authorization": f"Bearer {METRICS_KEY}"})
    assert opened == {("GET", path) for path in ("/metrics", "/river", "/river/stats")}


def test_the_right_key_opens_the_door(app: Any, routes: Any) -> None:
    """What stands behind it needs an engine; that it was reached is enough."""
    reading = [route for route in routes if route[0] == "GET"]
    assert _opened(app, reading, RIGHT) == set(reading)


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


def test_a_body_that_is_too_long_is_refused_by_other_routes_too(app: Any, monkeypatch) -> None:
    monkeypatch.setattr(body, "MAX_BODY_BYTES", 1000)
    monkeypatch.setattr(app.state, "river", river_state(), raising=False)
    headers = {**RIGHT, "Content-Type": "application/json"}
    for method, path in (("POST", "/tokenize"), ("PATCH", "/river")):
        response = fetch(app, method, path, headers=headers, content=b" " * 1001)
        assert response.status_code == response.json()["error"]["code"] == 413


def test_every_route_that_generates_knows_the_field(app: Any) -> None:
    """A route that vLLM adds must be one of these, or the field would be ignored there."""
    posts = {path for method, path in _routes(app.routes) if method == "POST"}
    assert posts - {*GENERATING, *OTHERS} == set(GENERATE_NOTHING)
