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

from river_vllm.request import RiverSettings
from server.http import plugin
from server.http.plugin import RiverEndpointPlugin
from tests.unit.http.support import L, Metrics, fetch, river_state

INFO = {"num_layers": L, "resident_layers": L, "kernels": ["torch"], "crossover": {"max_rows": 6}}


class Client:
    """Plays vLLM's engine client of a River model."""

    errored = False

    def __init__(self, architecture: str = "RiverLlamaForCausalLM", processes: int = 1) -> None:
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(
                architecture=architecture,
                model="tiny",
                served_model_name="served",
                hf_config=SimpleNamespace(),
            ),
            parallel_config=SimpleNamespace(_api_process_count=processes, _api_process_rank=0),
            additional_config={"river": {"threshold": 0.25, "min_layers": 3}},
        )
        self.output_processor = SimpleNamespace(
            add_request=None, process_outputs=None, has_unfinished_requests=lambda: True
        )
        self.engine_core = SimpleNamespace(engine_ranks_managed=[0, 1], get_output_async=None)
        self.generate = self.shutdown = None
        self.info: Any = [INFO, INFO]
        self.traced = False

    async def is_tracing_enabled(self) -> bool:
        return self.traced

    async def collective_rpc(self, method: str) -> Any:
        assert method == "river_info"
        if isinstance(self.info, Exception):
            raise self.info
        return self.info


@pytest.fixture(autouse=True)
def metrics(monkeypatch: pytest.MonkeyPatch) -> dict[int, Metrics]:
    """Metrics that are not registered with the process, by number of layers."""
    made: dict[int, Metrics] = {}

    def river_metrics(num_layers: int, model_name: str, engines: tuple[int, ...]) -> Metrics:
        assert (model_name, engines) == ("served", (0, 1))
        return made.setdefault(num_layers, Metrics())

    monkeypatch.setattr(plugin, "river_metrics", river_metrics)
    return made


def init(client: Any, **args: Any) -> Any:
    state = SimpleNamespace()
    asyncio.run(RiverEndpointPlugin().init_state(client, state, Namespace(**args)))
    return state.river


def test_the_state_is_what_engine_and_config_say(metrics: dict[int, Metrics]) -> None:
    client = Client()
    state = init(client, river_stall_seconds=7.0)
    assert state.describe().items() >= {"mode": "exit", "min_layers": 3, **INFO}.items()
    assert state.defaults == RiverSettings(True, 0.25, 3)
    assert state.progress.stall_seconds == 7.0
    assert metrics[L].thresholds == [0.25]
    assert metrics[L].max_rows == 6
    assert client.generate is not None, "it is not listened to"


@pytest.mark.parametrize("several", [False, True])
def test_spans_where_vllm_exports_its_own_and_several_api_servers(several: bool) -> None:
    client = Client(processes=1 + several)
    client.traced = several
    state = init(client)
    assert (state.tracer is not None, state.single_process) == (several, not several)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_engine_is_asked_again_while_it_serves(processes: int) -> None:

    async def run() -> int:
        client, asked = Client(processes=processes), []

        async def collective_rpc(method: str) -> Any:
            asked.append(method)
            return [INFO]

        client.collective_rpc = collective_rpc  # type: ignore[method-assign]
        await RiverEndpointPlugin().init_state(client, SimpleNamespace(), Namespace())
        await asyncio.sleep(0)
        return len(asked)

    assert asyncio.run(run()) == 2


def test_a_model_without_river_and_a_server_without_engine_have_no_state() -> None:
    client = Client("LlamaForCausalLM")
    assert init(client) is None
    assert client.generate is None
    assert init(None) is None


def test_a_worker_that_is_not_rivers_stops_the_server() -> None:
    client = Client()
    client.info = AttributeError("no river_info")
    with pytest.raises(RuntimeError, match="no river_info"):
        init(client)


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
