"""vLLM's endpoint plugin, with a fake engine client."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest

from server.http import plugin
from server.http.plugin import RiverEndpointPlugin
from tests.unit.http.support import L, Metrics

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
def _metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """That are not registered with the process."""
    monkeypatch.setattr(plugin, "river_metrics", lambda *_: Metrics())


def init(client: Any, **args: Any) -> Any:
    state = SimpleNamespace()
    asyncio.run(RiverEndpointPlugin().init_state(client, state, Namespace(**args)))
    return state.river


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


def test_a_worker_that_is_not_rivers_stops_the_server() -> None:
    client = Client()
    client.info = AttributeError("no river_info")
    with pytest.raises(RuntimeError, match="no river_info"):
        init(client)
