"""Model runner V1 (vLLM ``v1/worker/gpu_model_runner.py``) with a river."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from river_vllm.depths import attach
from river_vllm.model.forward import Forward
from river_vllm.step.table import StepTable
from river_vllm.worker.context import own_forward_context, part_metadata
from river_vllm.step.requests import Steps
from river_vllm.engine.warm_up import WarmUpMixin


class RiverRunnerMixin(WarmUpMixin):
    """Goes before vLLM's V1 runner class; its ``river_steps`` is set once the model is there."""

    river_steps: Steps
    _river_depths: dict[str, int]
    _river_running: tuple[StepTable, float] | None
    """The step that has been started, and when."""
    _river_draft: Callable[[], Any] | None = None
    """Makes the drafts of the step that has run last."""

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._river_depths = {}
        self._river_running = None
        self.river_steps.forget(scheduler_output.finished_req_ids)
        output = super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        if self.device.type == "cpu":
            self._river_ended()
        return output

    def _model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """vLLM's documented override point for the forward pass of a real step."""
        river = self.get_model().river
        table = self.river_steps.table()
        forward = super()._model_forward  # type: ignore[misc]
        self._river_running = table, time.perf_counter()
        output = river.run(table, self._river_forward(forward, *args, **kwargs))
        depths = self.river_steps.depths(table)
        self._river_depths = dict(zip(self.input_batch.req_ids, depths, strict=False))
        return output

    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        self.get_model().river.rest()
        output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        # An accelerator has ended once the sampled tokens are on the host: vLLM waits for them here
        # unless it schedules asynchronously. A grammar's mask may have been waited for as well.
        if grammar_output is None and not self.use_async_scheduling:
            self._river_ended()
        return attach(output, self._river_depths)

    def _river_ended(self: Any) -> None:
        """Correct the costs by the step that has ended. Run on CPUs only so far."""
        if self._river_running is not None:
            table, start = self._river_running
            self._river_running = None
            self.river_steps.observe(table, time.perf_counter() - start)

    def _river_forward(
        self: Any,
        forward: Callable[..., torch.Tensor],
        input_ids: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Forward:
        """The step's forward pass, of all rows or of those of a part."""

        def run(part: StepTable | None = None) -> torch.Tensor:
            if part is None:
                return forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)
            rows = part.origin_rows
            with own_forward_context(self.vllm_config, part_metadata(self, part)):
                return forward(
                    input_ids=None if input_ids is None else input_ids[rows],
                    positions=None if positions is None else positions[..., rows],
                    intermediate_tensors=intermediate_tensors,
                    inputs_embeds=None if inputs_embeds is None else inputs_embeds[rows],
                    **kwargs,
                )

        return run

    def propose_draft_token_ids(self: Any, *args: Any, **kwargs: Any) -> list[list[int]]:
        """None yet. The engine takes a step's drafts once it has sent the step's tokens
        (``v1/engine/core.py``, ``post_step``): made then, they keep no token waiting."""
        self._river_draft = partial(super().propose_draft_token_ids, *args, **kwargs)  # type: ignore[misc]
        return []

    def take_draft_token_ids(self: Any) -> Any:
        draft, self._river_draft = self._river_draft, None
        if draft is not None:
            with torch.inference_mode():
                self._draft_token_ids = draft()
        return super().take_draft_token_ids()  # type: ignore[misc]

    def _input_fits_in_drafter(self: Any, common_attn_metadata: Any) -> bool:
        """Each request has a limit of its own; vLLM's stops all of them near the longest's end."""
        return common_attn_metadata is not None

    def _sample(self: Any, logits: torch.Tensor | None, spec_decode_metadata: Any) -> Any:
        """Without drafts, as in a step of prompts, there is nothing to reject. vLLM 0.32 asks its
        rejection sampler all the same, which on the CPU fails at ``top_k`` for no rows at all
        (``v1/sample/ops/topk_topp_sampler.py``, ``apply_top_k_only``). Nor does it return the
        log-probabilities of ``logprob_token_ids``: beside a request that asks for them each takes
        the backbone's next token, and drafts are thrown away."""
        sampling = self.input_batch.sampling_metadata
        drafted = spec_decode_metadata is not None and any(spec_decode_metadata.num_draft_tokens)
        if spec_decode_metadata is None or (drafted and not sampling.logprob_token_ids):
            output = super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]
        else:
            if drafted:
                assert logits is not None
                self.drafter.withdraw()
                rows = [1 + drafts for drafts in spec_decode_metadata.num_draft_tokens]
                ends = spec_decode_metadata.cu_num_sampled_tokens
                logits = logits[ends - torch.tensor(rows, device=ends.device)]
                sampling = replace(sampling, spec_token_ids=[[] for _ in rows])
            # One row for each request: what vLLM calls a bonus token.
            output = self.sampler(
                logits=logits, sampling_metadata=sampling, predict_bonus_token=True
            )
        if (thinking := sampling.thinking_budget_state_holder) is not None:
            # vLLM remembers that it forced an end, for the drafted tokens of the same request and
            # step, and would not force the end of a second thought. No request with a budget has
            # drafts (``river_vllm/parameters.py``).
            for state in thinking._state.values():
                state["bonus_token_forced"] = False
        return output
