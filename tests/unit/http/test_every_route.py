"""Keys guard every route that vLLM's own application has, whatever vLLM adds to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from itertools import product
from typing import Any

import httpx
import pytest
import vllm.envs as envs
from starlette.routing import Mount, Route, WebSocketRoute

from server.cli.options import add_river_options
from server.cli.serve import AUTH_MIDDLEWARE
from server.http.auth import PUBLIC
from tests.unit.http.support import call

KEY = "right-key"
TASKS = ("generate", "transcription", "realtime", "render", "embed", "classify")
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
    """The whole application, with the routes of vLLM's development mode; no engine behind it."""
    from vllm.entrypoints.launchers.app import build_app

    from server.cli.vllm_cli import FlexibleArgumentParser, make_arg_parser

    root = logging.getLogger()
    level = root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_PLUGINS", "river")
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        # An engine of this process has frozen what vLLM reads from the environment.
        envs.disable_envs_cache()
        parser = make_arg_parser(FlexibleArgumentParser())
        add_river_options(parser)
        args = parser.parse_args(["--api-key", KEY, "--middleware", AUTH_MIDDLEWARE])
        args.enable_scale_out = args.enable_tokenizer_info_endpoint = True
        made = build_app(args, TASKS)
        # What vLLM's SageMaker routes import silences every logger below ERROR.
        root.setLevel(level)
        made.state.river = None
        yield made


def _routes(routes: list[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Method and path of everything that can be reached, parameters filled in."""
    for route in routes:
        if isinstance(route, Mount):
            yield "GET", prefix + route.path
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
