"""River's worker on CUDA. Not run on a GPU so far; unit-tested with fakes."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from river_vllm.verify.speculator_v2 import take_over
from river_vllm.worker.mixin import RiverWorkerMixin
from river_vllm.worker.runner import RiverRunnerMixin
from river_vllm.worker.runner_v2 import river_runner_v2


class RiverGPUModelRunner(RiverRunnerMixin, GPUModelRunner):
    """vLLM's V1 runner with River's batch feed."""


class RiverGPUWorker(RiverWorkerMixin, Worker):
    """vLLM's worker with River's runner."""

    def _make_model_runner(self) -> Any:
        if not self.use_v2_model_runner:
            return RiverGPUModelRunner(self.vllm_config, self.device)
        runner = super()._make_model_runner()
        runner.__class__ = river_runner_v2(type(runner))
        take_over(runner)
        return runner
