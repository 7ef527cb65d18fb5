"""River's worker on the CPU."""

from __future__ import annotations

from typing import Any

# isort: off
# vLLM asks for this import before any other of its worker (v1/worker/cpu_worker.py).
from vllm.v1.worker.cpu_worker import CPUWorker

# isort: on
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from river_vllm.verify import expand
from river_vllm.verify.proposer import RiverProposer
from river_vllm.worker.cpu_seeds import SeededChunksMixin
from river_vllm.worker.mixin import RiverWorkerMixin
from river_vllm.worker.runner import RiverRunnerMixin
from river_vllm.worker.runner_v2 import river_runner_v2


class RiverCPUModelRunner(RiverRunnerMixin, SeededChunksMixin, CPUModelRunner):
    """vLLM's CPU runner (V1) with River's batch feed."""


class RiverCPUWorker(RiverWorkerMixin, CPUWorker):
    """vLLM's CPU worker with River's runner."""

    def init_device(self) -> None:
        super().init_device()
        # CPUWorker.init_device names its runner class; a subclass cannot choose another.
        runner = self.model_runner
        if type(runner) is CPUModelRunner:
            runner.__class__ = RiverCPUModelRunner
            if getattr(runner, "speculative_config", None) is not None:
                # GPUModelRunner.__init__ names its drafter classes too.
                runner.drafter = RiverProposer(self.vllm_config, self.device, runner)
                expand.install()
        else:
            runner.__class__ = river_runner_v2(type(runner))

    def execute_model(self, scheduler_output: Any) -> Any:
        output = super().execute_model(scheduler_output)
        if output is None and not scheduler_output.has_structured_output_requests:
            # vLLM's second call brings a grammar's mask; without one it is a round trip to the
            # engine's process for nothing (docs/experiments.md).
            output = self.sample_tokens(None)
        return output
