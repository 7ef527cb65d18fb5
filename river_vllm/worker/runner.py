"""Model runner V1 (vLLM ``v1/worker/gpu_model_runner.py``) with River's batch feed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from river_vllm.request import RiverSettings, settings_of
from river_vllm.worker.feed import BatchFeed, RequestRows
from river_vllm.worker.output import attach


class RiverRunnerMixin:
    """Goes before vLLM's V1 runner class; ``set_up_river`` follows its construction."""

    river_feed: BatchFeed
    river_defaults: RiverSettings
    _river_depths: dict[str, int]

    def set_up_river(self, feed: BatchFeed, defaults: RiverSettings) -> None:
        self.river_feed = feed
        self.river_defaults = defaults
        self._river_depths = {}

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self.river_feed.forget(scheduler_output.finished_req_ids)
        return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]

    def _model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """vLLM's documented override point for the forward pass of a real step."""
        batch = self.river_feed.begin(self._river_rows())
        output = super()._model_forward(*args, river_batch=batch, **kwargs)  # type: ignore[misc]
        self._river_depths = self.river_feed.finish()
        return output

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        depths, self._river_depths = self._river_depths, {}
        return attach(super().sample_tokens(*args, **kwargs), depths)  # type: ignore[misc]

    def _river_rows(self: Any) -> Sequence[RequestRows]:
        batch = self.input_batch
        starts = self.query_start_loc.np
        rows = []
        for index, request_id in enumerate(batch.req_ids):
            request = self.requests[request_id]
            start = int(starts[index])
            params = request.sampling_params
            rows.append(
                RequestRows(
                    request_id,
                    start,
                    int(starts[index + 1]) - start,
                    int(batch.num_computed_tokens_cpu[index]),
                    request.num_prompt_tokens,
                    settings_of(params and params.extra_args, self.river_defaults),
                )
            )
        return rows
