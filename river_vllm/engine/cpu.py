"""River's worker on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

# isort: off
# vLLM asks for this import before any other of its worker (v1/worker/cpu_worker.py).
from vllm.v1.worker.cpu_worker import CPUWorker

# isort: on
import numpy as np
import torch
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from river_vllm import patches
from river_vllm.engine.runner import RiverRunnerMixin
from river_vllm.engine.worker import RiverWorkerMixin
from river_vllm.host import cannot_compile
from river_vllm.model.residency import move_to_huge_pages


class RiverCPUModelRunner(RiverRunnerMixin, CPUModelRunner):
    """vLLM's CPU runner (V1) with River's batch feed."""

    def _determine_batch_execution_and_padding(
        self, num_tokens: int, *args: Any, **kwargs: Any
    ) -> Any:
        """Few rows that need not have stock vLLM's bits get the bits that they have among others:
        they run beside padding."""
        found = super()._determine_batch_execution_and_padding(num_tokens, *args, **kwargs)
        least = 1 if self.river_exact or self.river_alike is None else self.river_alike.least
        if num_tokens >= least:
            return found
        mode, batch, *rest = found
        return mode, replace(batch, num_tokens=least), *rest

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        with patches.keys_are_split(self.river_exact or self.river_alike is None):
            return super()._build_attention_metadata(*args, **kwargs)

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Sample; rows whose sample is discarded draw from the common generator, not their own.

        vLLM samples in every step. Within a prompt it undoes the sample by setting the offset of
        the request's generator (``v1/worker/gpu_model_runner.py``, ``_bookkeeping_sync``), which
        relies on CUDA (a comment in https://github.com/vllm-project/vllm/pull/10097). A CPU
        generator has no offset: the worker raises. One request with a ``seed`` and a long prompt
        ends the engine. To be removed once stock vLLM answers such a request on the CPU;
        ``tests/reliability/test_stock.py`` fails then.
        """
        batch = self.input_batch
        discarded = np.flatnonzero(self.discard_request_mask.np[: batch.num_reqs]).tolist()
        held = {row: batch.generators.pop(row) for row in discarded if row in batch.generators}
        try:
            return super().sample_tokens(*args, **kwargs)
        finally:
            batch.generators.update(held)


class RiverCPUWorker(RiverWorkerMixin, CPUWorker):
    """vLLM's CPU worker with River's runner."""

    def init_device(self) -> None:
        with patches.cpu_worker_makes(RiverCPUModelRunner):
            super().init_device()
        if self.vllm_config.compilation_config.mode:
            patches.install("compiling CPU worker")
        elif cannot_compile():
            # An eager engine compiles a few of vLLM's functions too, at their first call, such as
            # that of log-probabilities (v1/sample/ops/logprobs.py).
            torch.compiler.set_stance("force_eager")
        if self.vllm_config.speculative_config is not None:
            patches.install("verifying CPU worker")
        if self.vllm_config.lora_config is not None:
            patches.install("adapting CPU worker")

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        move_to_huge_pages()

    def execute_model(self, scheduler_output: Any) -> Any:
        output = super().execute_model(scheduler_output)
        if output is None and not scheduler_output.has_structured_output_requests:
            # vLLM's second call brings a grammar's mask. Without a grammar it would be a useless
            # round trip to the engine's process (docs/experiments/speed.md).
            output = self.sample_tokens(None)
        return output
