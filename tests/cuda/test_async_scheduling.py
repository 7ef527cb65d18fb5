"""Exits under vLLM's asynchronous scheduler, the default on GPUs, on CPU tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.platforms.cpu import CpuPlatform

from river_vllm.compat import VllmConfig
from tests.support.engines import generate, greedy, river_engine

pytestmark = pytest.mark.engine

PROMPTS = [{"prompt_token_ids": list(range(first, first + 9))} for first in (50, 90, 130, 170)]
SETTINGS = [{"threshold": 0.2}, {"threshold": -1.0, "min_layers": 3}, {"enabled": False}, {}]


@contextmanager
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """vLLM's CPU build turns the scheduler off, samples in the call of the forward pass, and has
    no streams."""
    from river_vllm.engine.cpu import RiverCPUWorker
    from river_vllm.engine.worker import RiverWorkerMixin

    check = CpuPlatform.check_and_update_config.__func__  # type: ignore[attr-defined]

    def keep(cls: Any, vllm_config: VllmConfig) -> None:
        wanted = vllm_config.scheduler_config.async_scheduling
        check(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted

    @contextmanager
    def stream(_: Any) -> Iterator[None]:
        yield

    def nothing(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(
            wait_stream=lambda other: None, record=lambda: None, synchronize=lambda: None
        )

    with monkeypatch.context() as patched:
        patched.setattr(CpuPlatform, "check_and_update_config", classmethod(keep))
        patched.setattr(
            RiverCPUWorker,
            "execute_model",
            lambda self, output: super(RiverWorkerMixin, self).execute_model(output),
        )
        patched.setattr(torch.cuda, "stream", stream)
        for name in ("Stream", "Event", "current_stream"):
            patched.setattr(torch.cuda, name, nothing)
        yield


def test_depths_and_tokens_are_those_of_the_synchronous_scheduler(
    tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = [greedy(24, settings) for settings in SETTINGS]
    expected = generate(river_engine(tiny_qwen2), PROMPTS, params)
    with as_on_a_gpu(monkeypatch):
        engine = river_engine(tiny_qwen2, async_scheduling=True)
        core = engine.llm_engine.engine_core.engine_core
        assert type(core.scheduler).__name__ == "RiverAsyncScheduler"
        assert core.batch_queue is not None
        runner = core.model_executor.driver_worker.worker.model_runner
        assert runner.use_async_scheduling
        found = generate(engine, PROMPTS, params)
        again = generate(engine, PROMPTS, params)
    assert found == again == expected
    depths = [answer.exit_layers[1:] for answer in found]
    assert set(depths[1]) == {3} and set(depths[2]) == {max(depths[2])}
    assert len(set(depths[0])) > 1
