"""Model runner V2 with River's depths on its output. Unit-tested with fakes only."""

from __future__ import annotations

from typing import Any

from river_vllm.worker.output import attach


class RiverRunnerV2Mixin:
    """Goes before vLLM's V2 runner class; the feed itself is in its model state."""

    _river_depths: dict[str, int] = {}  # noqa: RUF012 - replaced, never changed in place

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self.model_state.forget_river(scheduler_output.finished_req_ids)
        output = super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        self._river_depths = self.model_state.river_feed.finish()
        self.get_model().river.residency.observe(self._river_depths.values())
        return output

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        depths, self._river_depths = self._river_depths, {}
        return attach(super().sample_tokens(*args, **kwargs), depths)  # type: ignore[misc]


def river_runner_v2(base: Any) -> Any:
    """``base`` (the platform's V2 runner) with River's output."""
    return type(f"River{base.__name__}", (RiverRunnerV2Mixin, base), {})
