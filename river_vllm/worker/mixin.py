"""What River adds to a vLLM worker, on every platform."""

from __future__ import annotations

from typing import Any

from river_vllm.compat import VllmConfig
from river_vllm.layers.river import River
from river_vllm.request import RiverSettings
from river_vllm.worker.feed import BatchFeed


class RiverWorkerMixin:
    """Goes before a vLLM worker class; sets the feed up once the model is there."""

    model_runner: Any
    vllm_config: VllmConfig

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        river = self._river()
        feed = BatchFeed(river.num_layers, river.config.prefill, river.max_rows)
        self._river_host().set_up_river(feed, RiverSettings.from_config(river.config))

    def river_info(self) -> dict[str, Any]:
        """RPC: what is in force. That a worker answers is the proof that River is active."""
        return self._river().info()

    def _river(self) -> River:
        river: River = self.model_runner.get_model().river
        return river

    def _river_host(self) -> Any:
        """The object that feeds the router: runner V1 itself, or runner V2's model state."""
        return getattr(self.model_runner, "model_state", self.model_runner)
