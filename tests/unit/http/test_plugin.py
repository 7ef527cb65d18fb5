"""vLLM's endpoint plugin, with a fake engine client."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator import Instrumentator

from server.http import plugin
from server.http.plugin import RiverEndpointPlugin
from tests.unit.http.support import L, Metrics, fetch, river_state
from tests.unit.support import config_with

INFO = {"num_layers": L, "resident_layers": L, "kernels": ["torch"], "crossover": {"max_rows": 6}}


class Client:
    """Plays vLLM's engine client of a River model."""

    errored = False
    generate = shutdown = None

    def __init__(self, processes: int = 1, error: Exception | None = None) -> None:
        names = {"model": "tiny", "served_model_name": "served"}
        parallel = SimpleNamespace(_api_process_count=processes, _api_process_rank=0)
        self.vllm_config = config_with({}, names, parallel_config=parallel)
        self.output_processor = SimpleNamespace(
            add_request=None, process_outputs=None, has_unfinished_requests=lambda: True
        )
        self.engine_core = SimpleNamespace(engine_ranks_managed=[0, 1], get_output_async=None)
        self.asked, self.error = 0, error

    async def is_tracing_enabled(self) -> bool:
        return False

    async def collective_rpc(self, method: str) -> Any:
        self.asked += 1
        if self.error:
            raise self.error
        return [INFO]


async def started(client: Client) -> Client:
    await RiverEndpointPlugin().init_state(client, SimpleNamespace(), Namespace())
    await asyncio.sleep(0)
    return client


@pytest.mark.parametrize("processes", [1, 2])
def test_the_engine_is_asked_again_while_it_serves(processes: int, monkeypatch) -> None:
    monkeypatch.setattr(plugin, "river_metrics", lambda *_: Metrics())
    assert asyncio.run(started(Client(processes))).asked == 2


def test_a_worker_that_is_not_rivers_stops_the_server() -> None:
    with pytest.raises(RuntimeError, match="no river_info"):
        asyncio.run(started(Client(error=AttributeError("no river_info"))))


def test_a_server_without_an_engine_has_no_river() -> None:
    state = SimpleNamespace()
    asyncio.run(RiverEndpointPlugin().init_state(None, state, Namespace()))
    assert state.river is None


def test_answers_are_counted_as_clients_get_them() -> None:
    """vLLM counts them in a middleware that is there before plugins are asked."""
    registry = CollectorRegistry()
    app = FastAPI()
    Instrumentator(registry=registry).add().instrument(app)
    RiverEndpointPlugin().attach_router(app)
    app.state.river = river_state()

    @app.post("/v1/completions")
    def completions() -> StreamingResponse:
        events = [b'data: {"error": {"code": 400}}\n\n', b"data: [DONE]\n\n"]
        return StreamingResponse(iter(events), media_type="text/event-stream")

    def status(body: Any) -> int:
        return fetch(app, "POST", "/v1/completions", json=body).status_code

    def counted(group: str) -> float | None:
        labels = {"handler": "/v1/completions", "method": "POST", "status": group}
        return registry.get_sample_value("http_requests_total", labels)

    assert status({"stream": True}) == status({"river": {"threshold": 7}}) == 400
    app.state.river.ending.begin(failed=False)
    assert status({}) == 503
    assert [counted(group) for group in ("2xx", "4xx", "5xx")] == [None, 2, 1]
