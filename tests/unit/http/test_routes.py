"""River's own routes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from river_vllm.config import RiverConfig
from server.http.routes import router
from server.http.state import RiverState
from server.telemetry.progress import Progress
from tests.unit.http.support import L, Metrics, fetch, river_state


def request(
    method: str, path: str, state: RiverState | None, errored: bool | None = False, **options: Any
) -> httpx.Response:
    app = FastAPI()
    app.include_router(router)
    app.state.river = state
    if errored is not None:
        app.state.engine_client = SimpleNamespace(errored=errored)
    return fetch(app, method, path, **options)


@pytest.mark.parametrize(
    ("param", "contents"),
    [
        ("body.threshold", [b'{"threshold": %s}' % v for v in (b"1.5", b"NaN", b'"0.5"', b"true")]),
        ("body.threshold", [b"{}"]),
        ("body.min_layers", [b'{"threshold": 0.5, "min_layers": 2}']),
        ("body", [b"[]", b"0.5", b"{", b"", b"\xff", b"[" * 1000 + b"]" * 1000]),
    ],
)
def test_a_wrong_change_changes_nothing(param: str, contents: list[bytes]) -> None:
    state = river_state()
    for content in contents:
        response = request("PATCH", "/river", state, content=content)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
    assert state.defaults.threshold == 0.9


def stalled(seconds: float) -> RiverState:
    now = [0.0]
    progress = Progress(10, lambda: now[0])
    progress.watch(lambda: True)
    now[0] = seconds
    return river_state(progress=progress)


def test_not_ready_where_work_waits_the_engine_is_dead_or_the_server_is_ending() -> None:
    response = request("GET", "/ready", stalled(17))
    assert response.status_code == 503
    assert "17 s" in response.json()["error"]["message"]
    assert request("GET", "/ready", river_state(), errored=True).status_code == 503
    state = river_state()
    state.ending.begin(failed=False)
    assert request("GET", "/ready", state).status_code == 503


def test_the_dial_does_not_promise_layers_that_are_gone() -> None:
    state = river_state(config=RiverConfig(resident_layers=4))
    response = request("PATCH", "/river", state, json={"threshold": 1.0})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "body.threshold"
    assert state.defaults.threshold == 0.9


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_in_force_in_the_worker_is_asked_for(fails: bool) -> None:
    async def collective_rpc(method: str) -> Any:
        if fails:
            raise ConnectionError("no engine")
        return [{"num_layers": L, "resident_layers": 5, "crossover": {"max_rows": 3}}]

    state = river_state()
    app = FastAPI()
    app.include_router(router)
    app.state.river = state
    app.state.engine_client = SimpleNamespace(collective_rpc=collective_rpc)
    app.state.openai_serving_models = SimpleNamespace(lora_requests={"terse": None})
    described = fetch(app, "GET", "/river").json()
    assert described.get("resident_layers") == (None if fails else 5)
    assert described["num_layers"] == L
    assert described["adapters"] == ["terse"]
    told = {} if fails else {"river_resident_layers": 5, "river_max_rows": 3}
    assert isinstance(state.metrics, Metrics)
    assert state.metrics.gauges == told
