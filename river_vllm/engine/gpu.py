"""River's worker on CUDA; ``docs/gpu.md`` says what was tried of it."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from river_vllm.engine.runner import RiverRunnerMixin
from river_vllm.engine.worker import RiverWorkerMixin


class RiverGPUModelRunner(RiverRunnerMixin, GPUModelRunner):
    """vLLM's model runner V1 with River's batch feed."""


class RiverGPUWorker(RiverWorkerMixin, Worker):
    """vLLM's worker with River's runner."""

    def _make_model_runner(self) -> Any:
        return RiverGPUModelRunner(self.vllm_config, self.device)
