"""Exit mode: a token leaves the backbone when its state has settled."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from river_vllm.depths import Depths, ExitSummary, depths_of, trace
from river_vllm.modes.mode import Numbers, WorkerMode
from river_vllm.request import RiverField, RiverSettings

if TYPE_CHECKING:
    from river_vllm.compat import VllmConfig
    from river_vllm.config import RiverConfig


class ExitMode:
    """Fast and approximate, with a dial: the threshold τ."""

    name: str = "exit"
    fixed: str | None = None

    def defaults(self, config: RiverConfig) -> RiverSettings:
        return RiverSettings(True, config.threshold, config.min_layers, config.layer_offsets)

    def unused(self, field: RiverField) -> tuple[str, str] | None:
        return None

    def settled(self, settings: RiverSettings, defaults: RiverSettings) -> RiverSettings:
        return settings

    def summary(self) -> ExitSummary:
        return ExitSummary()

    def trace(self, numbers: Depths) -> list[int]:
        return trace(numbers)

    def describe(self, config: RiverConfig, defaults: RiverSettings) -> dict[str, Any]:
        return {
            "mode": self.name,
            "threshold": defaults.threshold,
            "min_layers": defaults.min_layers,
            "prefill": config.prefill,
            "scope": config.scope,
            "criterion": config.criterion,
        }

    def dial(self, config: RiverConfig, defaults: RiverSettings) -> str:
        least = f"{defaults.min_layers} layer{'s' if defaults.min_layers > 1 else ''}"
        return (
            f"exit, τ = {defaults.threshold}, at least {least}, prompts: {config.prefill}, "
            f"scope: {config.scope}"
        )

    def numbers(
        self, requests: Mapping[str, Any], scheduler_output: Any, model_runner_output: Any
    ) -> dict[str, Numbers]:
        return {
            request_id: partial(np.full, fill_value=depth, dtype=np.int16)
            for request_id, depth in depths_of(model_runner_output).items()
        }

    def configure(self, vllm_config: VllmConfig, config: RiverConfig) -> None:
        return

    def worker(self, runner: Any, config: RiverConfig) -> WorkerMode:
        from river_vllm.modes.exit_worker import ExitWorker

        return ExitWorker(runner, config)
