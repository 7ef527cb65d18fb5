"""River's own routes need the key however the server was started, and keep strangers out."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from server.http.auth import ROUTES, path_of
from tests.unit.http.support import call, fetch, river_state, scope
from tests.unit.http.vllm_app import vllm_app

WAYS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "one key": (("--api-key", "key"), {}),
    "several keys": (("--api-key", "another", "key"), {}),
    "the environment": ((), {"VLLM_API_KEY": "key"}),
    "under a path": (("--api-key", "key", "--root-path", "/api"), {}),
    "under the path /": (("--api-key", "key", "--root-path", "/"), {}),
    "under a path with a slash": (("--api-key", "key", "--root-path", "/api/"), {}),
}
MINE = (
    *(("GET", "/river"), ("PATCH", "/river"), ("HEAD", "/river/console"), ("GET", "/river/stats")),
    *(("GET", "/river/console"), ("POST", "/river/console"), ("DELETE", "/river/console")),
    ("GET", "/river/console/js/main.js"),
)
CHANGE = {"threshold": 0.25}


async def _no_engine(method: str) -> Any:
    raise RuntimeError("no engine")


CLIENT = SimpleNamespace(collective_rpc=_no_engine, errored=False)


@pytest.fixture(scope="module", params=WAYS)
def keyed(request: pytest.FixtureRequest) -> Iterator[Any]:
    options, environment = WAYS[request.param]
    with vllm_app(*options, environment=environment) as app:
        yield app


@pytest.fixture
def plain(keyed: Any) -> Any:
    """vLLM's own server with a key: River comes in through its plugin only."""
    return with_river(keyed)


def with_river(app: Any) -> Any:
    app.state.river = river_state()
    app.state.engine_client = CLIENT
    app.state.openai_serving_models = SimpleNamespace(lora_requests={})
    return app


def test_a_plain_vllm_server_guards_rivers_routes(plain: Any) -> None:
    root = plain.root_path or ""
    prefixes = {"", root, root.rstrip("/")}
    for prefix in prefixes:
        for method, path in MINE:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "key"}):
                answer = fetch(plain, method, prefix + path, headers=headers, json=CHANGE)
                assert answer.status_code in (401, 404), (method, prefix + path)
                assert answer.status_code == 401 or prefix
    assert plain.state.river.defaults.threshold == 0.9


def test_the_key_opens_them(plain: Any) -> None:
    headers = {"Authorization": "Bearer key"}
    for method, path in MINE:
        answer = fetch(plain, method, path, headers=headers, json=CHANGE)
        # Starlette finds a folder's files under the path of --root-path only.
        of_folder = plain.root_path and path.endswith(".js")
        assert answer.status_code in (200, 204) or of_folder, (method, path)
    assert plain.state.river.defaults.threshold == CHANGE["threshold"]


@pytest.mark.parametrize("root", ["", "/", "/api", "/api/", "/river", "/v1", "/riv"])
@pytest.mark.parametrize("inner", ["/river", "/river/stats", "/v1/chat/completions"])
def test_the_path_is_the_routers(root: str, inner: str) -> None:
    async def route(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.scope["path"])

    app = Starlette(routes=[Route(inner, route)])
    for path in (inner, root + inner, root.rstrip("/") + inner, root + root + inner):
        request = scope(path, root_path=root, method="GET", query_string=b"")
        reached = call(app, request, [])[0]["status"] == 200
        assert reached == (path_of(request) == inner)


@pytest.fixture(scope="module")
def keyless() -> Iterator[Any]:
    with vllm_app("--host", "river.internal") as app:
        app.state.args.host = "127.0.0.1"
        yield app


def change(app: Any, host: str | None, origin: str | None = None, bound: str | None = None) -> int:
    """The status of a change of the dial, and that it went with it."""
    with_river(app).state.args.host = bound or "127.0.0.1"
    headers = {"Host": host or "", **({} if origin is None else {"Origin": origin})}
    status = fetch(app, "PATCH", ROUTES, headers=headers, json=CHANGE).status_code
    assert (status == 200) == (app.state.river.defaults.threshold == CHANGE["threshold"])
    return status


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        *((host, None) for host in ("127.0.0.1:8000", "localhost:8000")),
        *(("LOCALHOST:8000", "http://localhost:8000"), ("[::1]:8000", "http://[::1]:8000")),
        *(("10.0.0.7", "http://10.0.0.7"), ("localhost:80", "http://localhost")),
        ("localhost", "https://localhost"),
    ],
)
def test_without_a_key_curl_and_the_console_may_turn_the_dial(
    keyless: Any, host: str, origin: str | None
) -> None:
    assert change(keyless, host, origin) == 200


REBOUND = ("rebound.example:8000", "localhost.rebound.example", "127.0.0.1.rebound.example")
ELSEWHERE = ("page.example", "localhost:3000", "127.0.0.1:8000", "localhost.page.example:8000")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        *((host, None) for host in (*REBOUND, "127.1", "localhost.", "", "[::1", "localhost:port")),
        ("rebound.example:8000", "http://rebound.example:8000"),
        *(("localhost:8000", f"http://{origin}") for origin in ELSEWHERE),
        *(
            ("localhost:8000", f"http://{origin}")
            for origin in ("[::1", "localhost:8000@x.example")
        ),
        *(("localhost:8000", origin) for origin in ("null", "")),
    ],
)
def test_a_page_and_a_rebound_name_may_not(keyless: Any, host: str, origin: str | None) -> None:
    assert change(keyless, host, origin) == 403


def test_names_of_the_address_that_was_bound(keyless: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Machine")
    assert change(keyless, "river.internal:8000", bound="river.internal") == 200
    assert change(keyless, "machine:8000", bound="0.0.0.0") == 200
    assert change(keyless, "machine:8000", bound="127.0.0.1") == 403
    assert change(keyless, "machine:8000", bound="localhost") == 403
    assert change(keyless, "else.internal:8000", bound="0.0.0.0") == 403


def test_the_console_signs_in_from_its_own_page_only(keyless: Any) -> None:
    keyless.state.args.host = "127.0.0.1"
    path = ROUTES + "/console"
    for origin, status in (("http://localhost", 204), ("http://page.example", 403)):
        headers = {"Host": "localhost", "Origin": origin}
        assert fetch(keyless, "POST", path, headers=headers).status_code == status


def test_a_key_is_enough_from_anywhere(plain: Any) -> None:
    """Behind a proxy that passes its own name on, as deploy/nginx does."""
    headers = {"Host": "proxy.example", "Origin": "https://proxy.example:8443"}
    key = {"Authorization": "Bearer key"}
    assert fetch(plain, "PATCH", ROUTES, headers=headers | key, json=CHANGE).status_code == 200
