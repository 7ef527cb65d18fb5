"""What River adds to a vLLM worker, on every platform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from river_vllm import patches
from river_vllm.compat import VllmConfig
from river_vllm.layers.mapped import trim
from river_vllm.layers.river import River
from river_vllm.refusal import refusals_left
from river_vllm.request import RiverSettings
from river_vllm.startup import Stage, mark
from river_vllm.verify.proposer import RiverProposer
from river_vllm.worker.feed import BatchFeed
from river_vllm.worker.steps import measure_crossover

if TYPE_CHECKING:
    from river_vllm.calibration.observer import Measured, Observer


class RiverWorkerMixin:
    """Goes before a vLLM worker class; sets the feed up once the model is there."""

    model_runner: Any
    vllm_config: VllmConfig
    device: torch.device
    _observer: Observer

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        patches.install("worker")
        if self.vllm_config.speculative_config is not None:
            # GPUModelRunner.__init__ names its drafter classes; this one loads no second model.
            runner = self.model_runner
            runner.drafter = RiverProposer(self.vllm_config, self.device, runner)
        mark(Stage.WEIGHTS)
        with refusals_left():
            super().load_model(*args, **kwargs)  # type: ignore[misc]
        trim()
        river = self._river()
        feed = BatchFeed(river.num_layers, river.config.prefill, river.max_rows)
        self.model_runner.set_up_river(feed, RiverSettings.from_config(river.config))

    def compile_or_warm_up_model(self) -> Any:
        times = super().compile_or_warm_up_model()  # type: ignore[misc]
        river = self._river()
        mark(Stage.MEASURE)
        if river.config.verify:
            self.model_runner.drafter.measure_costs()
        elif river.steps_decide:
            measure_crossover(self.model_runner, river)
            self.model_runner.river_feed.max_rows = river.max_rows
        mark(Stage.SERVE)
        return times

    def river_info(self) -> dict[str, Any]:
        """RPC: what is in force. That a worker answers is the proof that River is active."""
        info = {
            **self._river().info(),
            "dtype": str(self.vllm_config.model_config.dtype).removeprefix("torch."),
            "kv_cache_dtype": self.vllm_config.cache_config.cache_dtype,
        }
        if self._river().config.verify:
            info["verify"] = self.model_runner.drafter.info()
        return info

    def river_observe(self) -> None:
        """RPC: get ready for teacher-forced passes (``calibration/passes.py``)."""
        from river_vllm.calibration.observer import Observer

        self._observer = Observer(self)
        self._river().observer = self._observer

    def river_observe_begin(self, reference: bool, kv: bool) -> None:
        """RPC: start a pass."""
        self._observer.begin(reference, kv)

    def river_observe_finish(self) -> Measured:
        """RPC within a process: the pass that was begun."""
        return self._observer.finish()

    def _river(self) -> River:
        river: River = self.model_runner.get_model().river
        return river
