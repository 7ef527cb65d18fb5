"""What River adds to vLLM's workers, and the runners they end up with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm.config import RiverConfig
from river_vllm.request import RiverSettings
from river_vllm.worker.feed import BatchFeed
from river_vllm.worker.mixin import RiverWorkerMixin
from river_vllm.worker.model_state import RiverStateMixin
from river_vllm.worker.runner import RiverRunnerMixin
from river_vllm.worker.runner_v2 import RiverRunnerV2Mixin
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
        )
        self.loaded: list[Any] = []

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        self.loaded.append((args, kwargs))

    def compile_or_warm_up_model(self) -> str:
        return "times"


class Worker(RiverWorkerMixin, FakeWorker):
    pass


def test_loading_sets_up_the_feed_with_the_models_settings() -> None:
    worker = Worker()
    worker.load_model(load_dummy_weights=True)
    assert worker.loaded == [((), {"load_dummy_weights": True})]
    host = worker.model_runner
    assert host.river_defaults == RiverSettings(True, 0.25, 3)
    assert isinstance(host.river_feed, BatchFeed)
    # Twelve layers, and a prompt may leave as a whole.
    batch = host.river_feed.begin([rows("a", 4, 0)])
    assert [unit.rows for unit in batch.units] == [4]
    batch.exit_layer[:] = 12
    assert host.river_feed.finish() == {"a": -12}


def test_runner_v2_is_fed_by_its_model_state() -> None:
    worker = Worker()
    state = worker.model_runner.model_state = RiverStateMixin()  # type: ignore[attr-defined]
    worker.load_model()
    assert state.river_defaults.threshold == 0.25
    assert not hasattr(worker.model_runner, "river_feed")


def test_info_is_the_rivers_own() -> None:
    assert Worker().river_info() == {**INFO, **TYPES}


@pytest.mark.parametrize("seam", ["drafter", "speculator"])
def test_what_drafts_is_asked_on_both_runners(seam: str) -> None:
    worker, asked = Worker(), []
    drafter = SimpleNamespace(measure_costs=lambda: asked.append(seam), info=lambda: {"a": 1})
    setattr(worker.model_runner, seam, drafter)
    config = RiverConfig(verify=4)
    river = SimpleNamespace(config=config, info=lambda: dict(INFO))
    worker.model_runner.get_model = lambda: SimpleNamespace(river=river)  # type: ignore[method-assign]
    assert worker.compile_or_warm_up_model() == "times"
    assert asked == [seam]
    assert worker.river_info() == {**INFO, **TYPES, "verify": {"a": 1}}


def test_the_cpu_worker_gets_rivers_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    from river_vllm.worker import cpu

    class OtherRunner:
        pass

    def init_device(kind: type) -> Any:
        def init(self: Any) -> None:
            self.model_runner = object.__new__(kind)

        return init

    worker = object.__new__(cpu.RiverCPUWorker)
    monkeypatch.setattr(cpu.CPUWorker, "init_device", init_device(cpu.CPUModelRunner))
    worker.init_device()
    assert type(worker.model_runner) is cpu.RiverCPUModelRunner
    assert isinstance(worker.model_runner, cpu.CPUModelRunner)
    monkeypatch.setattr(cpu.CPUWorker, "init_device", init_device(OtherRunner))
    worker.init_device()
    assert isinstance(worker.model_runner, RiverRunnerV2Mixin)
    assert isinstance(worker.model_runner, OtherRunner)


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

    class V2:
        pass

    def init(self: Any, vllm_config: Any, device: Any) -> None:
        self.made_with = (vllm_config, device)

    worker = object.__new__(gpu.RiverGPUWorker)
    worker.vllm_config, worker.device = "config", "cuda:0"
    monkeypatch.setattr(gpu.GPUModelRunner, "__init__", init)
    worker.use_v2_model_runner = False
    runner = worker._make_model_runner()
    assert type(runner) is gpu.RiverGPUModelRunner
    assert runner.made_with == ("config", "cuda:0")
    worker.use_v2_model_runner = True
    monkeypatch.setattr(gpu.Worker, "_make_model_runner", lambda self: V2())
    runner = worker._make_model_runner()
    assert isinstance(runner, RiverRunnerV2Mixin) and isinstance(runner, V2)


def test_rivers_methods_come_before_vllms() -> None:
    from river_vllm.worker import cpu, gpu

    for runner in (cpu.RiverCPUModelRunner, gpu.RiverGPUModelRunner):
        for name in ("execute_model", "_model_forward", "sample_tokens"):
            assert getattr(runner, name) is getattr(RiverRunnerMixin, name)
            assert any(name in vars(base) for base in runner.__mro__[2:])
    for worker in (cpu.RiverCPUWorker, gpu.RiverGPUWorker):
        assert worker.load_model is RiverWorkerMixin.load_model
