"""vLLM's stat logger seam: one call for every step of the engine, outputs or not."""

from __future__ import annotations

from typing import Any

from river_vllm.compat import StatLoggerBase, VllmConfig
from server.telemetry.progress import Progress

_watchers: list[Progress] = []


def on_step(progress: Progress) -> None:
    """Tell ``progress`` about every step from now on."""
    _watchers[:] = [progress]


class RiverStepLogger(StatLoggerBase):
    """Entry point of ``vllm.stat_logger_plugins``: steps as signs of life.

    A long prompt takes many steps before its first token, and none of them has an output.
    """

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        del vllm_config, engine_index

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        del scheduler_stats, iteration_stats, mm_cache_stats, engine_idx
        for progress in _watchers:
            progress.step()

    def log_engine_initialized(self) -> None:
        """Nothing to log: River has its own start-up line."""
