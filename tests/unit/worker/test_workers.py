"""What River adds to vLLM's workers, and the runners they end up with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm import patches
from river_vllm.config import RiverConfig
from river_vllm.request import RiverSettings
from river_vllm.worker import mixin
from river_vllm.worker.feed import BatchFeed
from river_vllm.worker.mixin import RiverWorkerMixin
from river_vllm.worker.runner import RiverRunnerMixin
from tests.unit.worker.support import rows

INFO = {"num_layers": 12}

TYPES = {"dtype": "bfloat16", "kv_cache_dtype": "fp8"}


class Host(RiverRunnerMixin):
    """A V1 runner whose model is there once it has been loaded."""

    def get_model(self) -> Any:
        config = RiverConfig(threshold=0.25, min_layers=3, prefill="sequence")
        river = SimpleNamespace(num_layers=12, max_rows=8, config=config, info=lambda: INFO)
        return SimpleNamespace(river=river)


class FakeWorker:
    def __init__(self) -> None:
        self.model_runner = Host()
        self.vllm_config: Any = SimpleNamespace(
            model_config=SimpleNamespace(dtype=torch.bfloat16),
            cache_config=SimpleNamespace(cache_dtype="fp8"),
            speculative_config=None,
        )
        self.loaded: list[Any] = []

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        self.loaded.append((args, kwargs, getattr(self.model_runner, "drafter", None)))

    def compile_or_warm_up_model(self) -> str:
        return "times"


class Worker(RiverWorkerMixin, FakeWorker):
    pass


def test_loading_sets_up_the_feed_with_the_models_settings() -> None:
    worker = Worker()
    worker.load_model(load_dummy_weights=True)
    assert worker.loaded == [((), {"load_dummy_weights": True}, None)]
    host = worker.model_runner
    assert host.river_defaults == RiverSettings(True, 0.25, 3)
    assert isinstance(host.river_feed, BatchFeed)
    # Twelve layers, and a prompt may leave as a whole.
    batch = host.river_feed.begin([rows("a", 4, 0)])
    assert [unit.rows for unit in batch.units] == [4]
    batch.exit_layer[:] = 12
    assert host.river_feed.finish() == {"a": -12}


def test_an_engine_that_verifies_drafts_with_the_river(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own drafter would load a second model, so River's is there before it loads one."""
    monkeypatch.setattr(mixin, "RiverProposer", lambda *made_with: made_with)
    worker = Worker()
    worker.device = "cuda:0"
    worker.vllm_config.speculative_config = object()
    worker.load_model()
    assert worker.loaded == [((), {}, (worker.vllm_config, "cuda:0", worker.model_runner))]


def test_info_is_the_rivers_own() -> None:
    assert Worker().river_info() == {**INFO, **TYPES}


def test_what_drafts_is_asked() -> None:
    worker, asked = Worker(), []
    drafter = SimpleNamespace(measure_costs=lambda: asked.append("costs"), info=lambda: {"a": 1})
    worker.model_runner.drafter = drafter  # type: ignore[attr-defined]
    config = RiverConfig(verify=4)
    river = SimpleNamespace(config=config, info=lambda: dict(INFO))
    worker.model_runner.get_model = lambda: SimpleNamespace(river=river)  # type: ignore[method-assign]
    assert worker.compile_or_warm_up_model() == "times"
    assert asked == ["costs"]
    assert worker.river_info() == {**INFO, **TYPES, "verify": {"a": 1}}


@pytest.mark.parametrize("verifies", [False, True])
def test_the_cpu_worker_gets_rivers_runner(verifies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker import cpu_worker

    from river_vllm.worker import cpu

    def init_device(self: Any) -> None:
        self.model_runner = object.__new__(cpu_worker.CPUModelRunner)

    patched: list[str] = []
    monkeypatch.setattr(patches, "install", patched.append)
    monkeypatch.setattr(cpu.CPUWorker, "init_device", init_device)
    worker = object.__new__(cpu.RiverCPUWorker)
    worker.vllm_config = SimpleNamespace(speculative_config=object() if verifies else None)
    worker.init_device()
    assert type(worker.model_runner) is cpu.RiverCPUModelRunner
    assert cpu_worker.CPUModelRunner is cpu.CPUModelRunner
    assert patched == (["verifying CPU worker"] if verifies else [])


@pytest.mark.parametrize(
    ("ran", "grammar", "given"),
    [
        (None, False, "sampled without a mask"),
        (None, True, None),  # the engine sends the grammar's mask with its second call
        ("nothing to run", False, "nothing to run"),
    ],
)
def test_a_step_samples_at_once_unless_a_mask_is_to_come(
    monkeypatch: pytest.MonkeyPatch, ran: Any, grammar: bool, given: Any
) -> None:
    from river_vllm.worker import cpu

    def sample(self: Any, mask: Any) -> str:
        assert mask is None
        return "sampled without a mask"

    monkeypatch.setattr(cpu.CPUWorker, "execute_model", lambda self, output: ran)
    monkeypatch.setattr(cpu.CPUWorker, "sample_tokens", sample)
    worker = object.__new__(cpu.RiverCPUWorker)
    scheduled = SimpleNamespace(has_structured_output_requests=grammar)
    assert worker.execute_model(scheduled) == given


def test_the_gpu_worker_gets_rivers_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    from river_vllm.worker import gpu

    def init(self: Any, vllm_config: Any, device: Any) -> None:
        self.made_with = (vllm_config, device)

    worker = object.__new__(gpu.RiverGPUWorker)
    worker.vllm_config, worker.device = "config", "cuda:0"
    monkeypatch.setattr(gpu.GPUModelRunner, "__init__", init)
    runner = worker._make_model_runner()
    assert type(runner) is gpu.RiverGPUModelRunner
    assert runner.made_with == ("config", "cuda:0")


def test_rivers_methods_come_before_vllms() -> None:
    from river_vllm.worker import cpu, gpu

    for runner in (cpu.RiverCPUModelRunner, gpu.RiverGPUModelRunner):
        for name in ("execute_model", "_model_forward", "sample_tokens"):
            assert any(name in vars(base) for base in runner.__mro__[2:])
            if name not in vars(runner):
                assert getattr(runner, name) is getattr(RiverRunnerMixin, name)
    for worker in (cpu.RiverCPUWorker, gpu.RiverGPUWorker):
        assert worker.load_model is RiverWorkerMixin.load_model
