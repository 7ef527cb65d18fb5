"""Model runner V1 (vLLM ``v1/worker/gpu_model_runner.py``) with River's batch feed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from river_vllm.compat import CompilationMode
from river_vllm.request import RiverSettings, settings_of
from river_vllm.worker.feed import BatchFeed, RequestRows
from river_vllm.worker.output import attach
from river_vllm.worker.sampling import needs_every_logit
from river_vllm.worker.split import SubStep, sub_step
from river_vllm.worker.warm_up import WarmUpMixin


class RiverRunnerMixin(WarmUpMixin):
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
        if self.river_defaults.verified:
            self.drafter.forget(scheduler_output.finished_req_ids)
        return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]

    def _model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """vLLM's documented override point for the forward pass of a real step."""
        forward = super()._model_forward  # type: ignore[misc]
        if self.river_defaults.verified:
            return forward(*args, **kwargs)
        river = self.get_model().river
        rows = self._river_rows()
        batch = self.river_feed.begin(rows)
        if not batch.units and not river.residency.offloads:
            output = forward(*args, **kwargs)
        elif batch.covers_all_rows or not self._river_compiles():
            output = forward(*args, river_batch=batch, **kwargs)
        else:
            output = forward(*args, **kwargs)
            self._river_again(forward, output, sub_step(batch, rows), *args, **kwargs)
        river.plan.river_head = self.river_feed.may_use_river_head()
        self._river_depths = self.river_feed.finish()
        river.residency.observe(self._river_depths.values())
        return output

    def _river_again(
        self: Any,
        forward: Any,
        output: torch.Tensor,
        part: SubStep,
        input_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        """Run the rows of ``part`` once more, free to exit, and put them into ``output``."""
        groups = [group for kind in self.attn_groups for group in kind]
        with part.forward_context(self.vllm_config, groups):
            output[part.rows] = forward(
                input_ids=None if input_ids is None else input_ids[part.rows],
                positions=None if positions is None else positions[..., part.rows],
                intermediate_tensors=intermediate_tensors,
                inputs_embeds=None if inputs_embeds is None else inputs_embeds[part.rows],
                river_batch=part.batch,
                **kwargs,
            )
        self.river_feed.settle(part.batch)

    def _input_fits_in_drafter(self: Any, common_attn_metadata: Any) -> bool:
        """Each request has a limit of its own; vLLM's stops all of them near the longest's end."""
        if self.river_defaults.verified:
            return common_attn_metadata is not None
        fits: bool = super()._input_fits_in_drafter(common_attn_metadata)  # type: ignore[misc]
        return fits

    def _sample(self: Any, logits: torch.Tensor | None, spec_decode_metadata: Any) -> Any:
        """Without drafts, as in a step of prompts, there is nothing to reject. vLLM 0.32 asks its
        rejection sampler all the same, which on the CPU fails at ``top_k`` for no rows at all
        (``v1/sample/ops/topk_topp_sampler.py``, ``apply_top_k_only``)."""
        if spec_decode_metadata is not None and not any(spec_decode_metadata.num_draft_tokens):
            spec_decode_metadata = None
        return super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]

    def _river_compiles(self: Any) -> bool:
        return self.vllm_config.compilation_config.mode != CompilationMode.NONE

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        depths, self._river_depths = self._river_depths, {}
        self.get_model().river.plan.river_head = False
        return attach(super().sample_tokens(*args, **kwargs), depths)  # type: ignore[misc]

    def _river_rows(self: Any) -> Sequence[RequestRows]:
        batch = self.input_batch
        starts = self.query_start_loc.np
        rows = []
        for index, request_id in enumerate(batch.req_ids):
            request = self.requests[request_id]
            start = int(starts[index])
            params = request.sampling_params
            settings = settings_of(params and params.extra_args, self.river_defaults)
            rows.append(
                RequestRows(
                    request_id,
                    start,
                    int(starts[index + 1]) - start,
                    int(batch.num_computed_tokens_cpu[index]),
                    settings.prompt_tokens(request.num_prompt_tokens),
                    settings,
                    params is not None and needs_every_logit(params),
                )
            )
        return rows
