"""What River adds to a vLLM worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm.modes.exits import Exits
from river_vllm.modes.verified import Verified
from river_vllm.worker.mixin import RiverWorkerMixin

INFO = {"num_layers": 12}


class FakeWorker:
    """A worker of vLLM's, whose model is there once it has been loaded."""

    def __init__(self, river: dict[str, Any]) -> None:
        self.model_runner: Any = SimpleNamespace()
        self.vllm_config: Any = SimpleNamespace(
            additional_config={"river": river},
            model_config=SimpleNamespace(dtype=torch.bfloat16, hf_config=SimpleNamespace()),
            cache_config=SimpleNamespace(cache_dtype="fp8"),
        )
        self.loaded: list[Any] = []

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        self.loaded.append((args, kwargs))
        river = SimpleNamespace(num_layers=12)
        model = SimpleNamespace(river=river, river_info=lambda: dict(INFO))
        self.model_runner.get_model = lambda: model

    def compile_or_warm_up_model(self) -> str:
        return "times"


class Worker(RiverWorkerMixin, FakeWorker):
    pass


@pytest.mark.parametrize(
    ("settings", "mode"), [({"threshold": 0.25}, Exits), ({"verify": 4}, Verified)]
)
def test_a_loaded_model_is_run_in_the_engines_mode(settings: Any, mode: type) -> None:
    worker = Worker(settings)
    worker.load_model(load_dummy_weights=True)
    assert worker.loaded == [((), {"load_dummy_weights": True})]
    assert type(worker.model_runner.river_mode) is mode


def test_the_mode_measures_once_the_engine_is_warm() -> None:
    worker, asked = Worker({"verify": 4}), []
    worker.load_model()
    worker.model_runner.drafter = SimpleNamespace(
        measure_costs=lambda: asked.append("costs"), info=lambda: {"a": 1}
    )
    assert asked == []
    assert worker.compile_or_warm_up_model() == "times"
    assert asked == ["costs"]


def test_info_is_the_rivers_and_the_modes() -> None:
    worker = Worker({})
    worker.load_model()
    worker.model_runner.river_mode = SimpleNamespace(info=lambda: {"verify": {"a": 1}})
    types = {"dtype": "bfloat16", "kv_cache_dtype": "fp8"}
    assert worker.river_info() == {**INFO, **types, "verify": {"a": 1}}
