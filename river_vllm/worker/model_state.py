"""Model runner V2 (vLLM ``v1/worker/gpu``): the model's own ``ModelState`` feeds the router.

Not run on a GPU so far; unit-tested with fakes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from river_vllm.request import RiverSettings, settings_of
from river_vllm.worker.feed import BatchFeed, RequestRows


class RiverStateMixin:
    """Goes before vLLM's default ``ModelState``."""

    river_feed: BatchFeed
    river_defaults: RiverSettings

    def set_up_river(self, feed: BatchFeed, defaults: RiverSettings) -> None:
        self.river_feed = feed
        self.river_defaults = defaults
        self._river_requests: dict[str, tuple[int, RiverSettings]] = {}

    def add_request(self: Any, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)  # type: ignore[misc]
        params = new_req_data.sampling_params
        settings = settings_of(params and params.extra_args, self.river_defaults)
        prompt_tokens = new_req_data.prompt_token_ids
        if prompt_tokens is None:
            prompt_tokens = new_req_data.prompt_embeds
        prompt = settings.prompt_tokens(len(prompt_tokens))
        # A request that was preempted comes back here; its prompt is what it was at first.
        self._river_requests.setdefault(new_req_data.req_id, (prompt, settings))

    def forget_river(self, request_ids: Any) -> None:
        """Requests that have ended, not those that were preempted."""
        self.river_feed.forget(request_ids)
        for request_id in request_ids:
            self._river_requests.pop(request_id, None)

    def prepare_inputs(self: Any, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """Adds ``river_batch`` to the arguments of the model's ``forward``.

        Requests that this state has not met (warm-up, dummy batches) bring no units; in verified
        mode a step is the backbone's.
        """
        inputs = super().prepare_inputs(input_batch, req_states)  # type: ignore[misc]
        if self.river_defaults.verified:
            return inputs
        starts = input_batch.query_start_loc_np
        rows = []
        for index, request_id in enumerate(input_batch.req_ids[: input_batch.num_reqs]):
            known = self._river_requests.get(request_id)
            if known is None:
                return inputs
            prompt, settings = known
            start = int(starts[index])
            position = int(input_batch.num_computed_tokens_np[index])
            count = int(starts[index + 1]) - start
            rows.append(RequestRows(request_id, start, count, position, prompt, settings))
        return {**inputs, "river_batch": self.river_feed.begin(rows)}


@cache
def river_model_state_cls() -> type:
    """vLLM's default state with River's feed; resolved when runner V2 asks for it."""
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    return type("RiverModelState", (RiverStateMixin, DefaultModelState), {})
