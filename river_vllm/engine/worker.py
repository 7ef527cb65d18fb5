"""Mixin that makes a vLLM worker River's, on every platform."""

from __future__ import annotations

from typing import Any

from river_vllm import patches
from river_vllm.compat import VllmConfig
from river_vllm.config import river_config_of
from river_vllm.errors import RiverError
from river_vllm.host import Stage, mark, refusals_left
from river_vllm.model.four_bit import RiverWNA16LinearKernel
from river_vllm.model.residency import trim
from river_vllm.modes.verified.proposer import RiverProposer


class RiverWorkerMixin:
    """Goes before a vLLM worker class."""

    model_runner: Any
    vllm_config: VllmConfig

    def init_device(self) -> None:
        with patches.runner_drafts_with(RiverProposer):
            super().init_device()  # type: ignore[misc]

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        patches.install("worker")
        patches.kernel_comes_first(RiverWNA16LinearKernel)
        if self.vllm_config.speculative_config is not None:
            patches.every_logits_processor_is_there(self.model_runner)
        mark(Stage.WEIGHTS)
        with refusals_left():
            super().load_model(*args, **kwargs)  # type: ignore[misc]
        trim()

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Reload as vLLM does.

        Raises:
            RiverError: some layers are without their bf16 weights (``resident_layers``).
        """
        layers = self.vllm_config.model_config.get_total_num_hidden_layers()
        if river_config_of(self.vllm_config).offloads(layers):
            raise RiverError("weights cannot be reloaded with 'resident_layers': restart River")
        super().reload_weights(*args, **kwargs)  # type: ignore[misc]

    def compile_or_warm_up_model(self) -> Any:
        times = super().compile_or_warm_up_model()  # type: ignore[misc]
        mark(Stage.MEASURE)
        self.model_runner.river_begin()
        patches.the_server_answers_ctrl_c()
        mark(Stage.SERVE)
        return times

    def river_info(self) -> dict[str, Any]:
        """RPC: the settings in force. An answer proves that River is active."""
        return {
            **self.model_runner.get_model().river_info(),
            "dtype": str(self.vllm_config.model_config.dtype).removeprefix("torch."),
            "kv_cache_dtype": self.vllm_config.cache_config.cache_dtype,
            **self.model_runner.river_info(),
        }
