"""The runners that vLLM's workers end up with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm.worker.mixin import RiverWorkerMixin
from river_vllm.worker.runner import RiverRunnerMixin
from river_vllm.worker.runner_v2 import RiverRunnerV2Mixin


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
