"""The runners that vLLM's workers end up with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm import patches
from river_vllm.engine.runner import RiverRunnerMixin
from river_vllm.engine.worker import RiverWorkerMixin


@pytest.mark.parametrize(
    ("speculative", "mode", "places"),
    [
        (None, 0, []),
        (object(), 0, ["verifying CPU worker"]),
        (None, 2, ["compiling CPU worker"]),
    ],
)
def test_the_cpu_worker_gets_rivers_runner(
    speculative: Any, mode: int, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.worker import cpu_worker

    from river_vllm.engine import cpu

    def init_device(self: Any) -> None:
        self.model_runner = object.__new__(cpu_worker.CPUModelRunner)

    patched: list[str] = []
    monkeypatch.setattr(patches, "install", patched.append)
    monkeypatch.setattr(cpu.CPUWorker, "init_device", init_device)
    monkeypatch.setattr(cpu, "cannot_compile", lambda: None)
    worker = object.__new__(cpu.RiverCPUWorker)
    worker.vllm_config = SimpleNamespace(
        speculative_config=speculative, compilation_config=SimpleNamespace(mode=mode)
    )
    worker.init_device()
    assert type(worker.model_runner) is cpu.RiverCPUModelRunner
    assert cpu_worker.CPUModelRunner is cpu.CPUModelRunner
    assert patched == places


@pytest.mark.parametrize(
    ("wrong", "stances"), [(None, []), ("there is no C++ compiler (g++)", ["force_eager"])]
)
def test_without_a_compiler_nothing_is_compiled(
    wrong: str | None, stances: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from river_vllm.engine import cpu

    taken: list[str] = []
    monkeypatch.setattr(cpu.CPUWorker, "init_device", lambda self: None)
    monkeypatch.setattr(cpu, "cannot_compile", lambda: wrong)
    monkeypatch.setattr(torch.compiler, "set_stance", taken.append)
    worker = object.__new__(cpu.RiverCPUWorker)
    worker.vllm_config = SimpleNamespace(
        speculative_config=None, compilation_config=SimpleNamespace(mode=0)
    )
    worker.init_device()
    assert taken == stances


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
    from river_vllm.engine import cpu

    def sample(self: Any, mask: Any) -> str:
        assert mask is None
        return "sampled without a mask"

    monkeypatch.setattr(cpu.CPUWorker, "execute_model", lambda self, output: ran)
    monkeypatch.setattr(cpu.CPUWorker, "sample_tokens", sample)
    worker = object.__new__(cpu.RiverCPUWorker)
    scheduled = SimpleNamespace(has_structured_output_requests=grammar)
    assert worker.execute_model(scheduled) == given


def test_the_gpu_worker_gets_rivers_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    from river_vllm.engine import gpu

    def init(self: Any, vllm_config: Any, device: Any) -> None:
        self.made_with = (vllm_config, device)

    worker = object.__new__(gpu.RiverGPUWorker)
    worker.vllm_config, worker.device = "config", "cuda:0"
    monkeypatch.setattr(gpu.GPUModelRunner, "__init__", init)
    runner = worker._make_model_runner()
    assert type(runner) is gpu.RiverGPUModelRunner
    assert runner.made_with == ("config", "cuda:0")


def test_rivers_methods_come_before_vllms() -> None:
    from river_vllm.engine import cpu, gpu

    for runner in (cpu.RiverCPUModelRunner, gpu.RiverGPUModelRunner):
        for name in ("execute_model", "_model_forward", "sample_tokens"):
            assert any(name in vars(base) for base in runner.__mro__[2:])
            if name not in vars(runner):
                assert getattr(runner, name) is getattr(RiverRunnerMixin, name)
    for worker in (cpu.RiverCPUWorker, gpu.RiverGPUWorker):
        assert worker.load_model is RiverWorkerMixin.load_model
