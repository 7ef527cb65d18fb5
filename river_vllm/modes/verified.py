"""Verified mode: the river drafts and the backbone checks; the answer is the backbone's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from river_vllm.modes.mode import Numbers, WorkerMode
from river_vllm.request import RiverField, RiverSettings
from river_vllm.verify.tally import DraftSummary, drafted_trace, step_tallies

if TYPE_CHECKING:
    from river_vllm.compat import VllmConfig
    from river_vllm.config import RiverConfig
    from river_vllm.depths import Depths


class VerifiedMode:
    """Lossless: no token exits."""

    name: str = "verified"
    fixed: str | None = (
        "this server verifies drafts (--river-verify): no token exits, so there is no threshold "
        "to change"
    )

    def defaults(self, config: RiverConfig) -> RiverSettings:
        return RiverSettings(True, 1.0, config.min_layers, mode=self.name)

    def unused(self, field: RiverField) -> tuple[str, str] | None:
        for name in sorted(field.model_fields_set - {"enabled", "trace"}):
            return name, (
                f"'{name}' belongs to early exit; this server verifies drafts (--river-verify) and "
                "takes 'enabled' and 'trace'"
            )
        return None

    def settled(self, settings: RiverSettings, defaults: RiverSettings) -> RiverSettings:
        """A request made in Python that asks for exits is answered by the backbone alone."""
        if (settings.threshold, settings.min_layers) == (1.0, defaults.min_layers):
            return settings
        return RiverSettings(False, 1.0, defaults.min_layers, mode=self.name)

    def summary(self) -> DraftSummary:
        return DraftSummary()

    def trace(self, numbers: Depths) -> list[int]:
        return drafted_trace(numbers)

    def describe(self, config: RiverConfig, defaults: RiverSettings) -> dict[str, Any]:
        return {"mode": self.name, "draft_layers": config.draft_layers}

    def dial(self, config: RiverConfig, defaults: RiverSettings) -> str:
        return f"verified: up to {config.verify} drafted tokens are verified, answers are exact"

    def numbers(
        self, requests: Mapping[str, Any], scheduler_output: Any, model_runner_output: Any
    ) -> dict[str, Numbers]:
        tallies = step_tallies(requests, scheduler_output, model_runner_output)
        return {request_id: tally.values for request_id, tally in tallies.items()}

    def configure(self, vllm_config: VllmConfig, config: RiverConfig) -> None:
        from river_vllm.verify import speculation

        speculation.install(vllm_config, config.verify)

    def worker(self, runner: Any, config: RiverConfig) -> WorkerMode:
        from river_vllm.modes.verified_worker import VerifiedWorker

        return VerifiedWorker(runner)
