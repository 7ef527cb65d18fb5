"""Model runner V1 (vLLM ``v1/worker/gpu_model_runner.py``) with a river."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from river_vllm.compat import BUILTIN_LOGITS_PROCESSORS
from river_vllm.config import river_config_of
from river_vllm.costs import Costs
from river_vllm.engine.scheduler import put_depths
from river_vllm.engine.self_check import SelfCheck, self_check
from river_vllm.engine.stopwatch import Stopwatch
from river_vllm.engine.warm_up import WarmUpMixin, costs_of_start
from river_vllm.model.forward import Forward
from river_vllm.model.rounding import SIZES, Alike
from river_vllm.modes.exit import Exits, timed
from river_vllm.request import default_settings, needs_every_logit
from river_vllm.step.requests import Request, Requests, Scheduled
from river_vllm.step.table import Pass


class RiverRunnerMixin(WarmUpMixin):
    """Mixin of vLLM's V1 runner class; ``river_begin`` is called once the engine is warm."""

    river_forward: Forward
    river_requests: Requests
    river_exits: Exits
    river_costs: Costs
    river_check: SelfCheck | None
    """None where nothing is drafted."""
    river_exact = True
    """Whether a request of the step needs stock vLLM's bits."""
    river_alike: Alike | None = None
    """The numbers of rows of a step with which a verified row has the same bits; None: nothing is
    drafted, or the bits depend on the step."""
    _river_step: list[Scheduled]
    """The rows of the step whose inputs are prepared."""
    _river_depths: dict[str, int]
    _river_watch: Stopwatch
    _river_running: Pass | None
    """The step that has been started."""
    _river_draft: Callable[[], Any] | None = None
    """Makes the drafts of the step that has run last."""

    def river_begin(self: Any) -> None:
        """Time passes, and set up the runner for requests."""
        config = river_config_of(self.vllm_config)
        drafter = getattr(self, "drafter", None)
        processors = map(type, self.input_batch.logitsprocs.all)
        custom = any(one not in BUILTIN_LOGITS_PROCESSORS for one in processors)

        def every_logit(request: Request) -> bool:
            # An operator's own processor may read any logit.
            return custom or (request.params is not None and needs_every_logit(request.params))

        self.river_forward = forward = Forward(self)
        self.river_check = None if drafter is None else self_check(self, forward)
        used = self.river_check is None or self.river_check.passed
        self.river_requests = Requests(self, default_settings(config), used)
        # vLLM maps adapters to the rows of a step, and knows of no padding.
        if drafter is not None and self.device.type == "cpu" and self.lora_config is None:
            self.river_alike = forward.alike()
        kinds = timed(config, forward, self.max_num_reqs)
        if drafter is not None:
            kinds |= drafter.timed(forward, self.max_num_reqs)
        self.river_costs = costs = costs_of_start(self, forward, kinds)
        # With asynchronous scheduling a step starts before the host has the last one's tokens.
        self._river_watch = Stopwatch(self.device, 2 if self.use_async_scheduling else 1)
        layers = forward.river.num_layers
        self.river_exits = Exits(config, layers, costs, every_logit, self.device)

    def river_info(self: Any) -> dict[str, Any]:
        """Limits and costs that decide about exits and drafts, for operators."""
        drafter = getattr(self, "drafter", None)
        return {
            **(drafter.info() if drafter is not None else {}),
            **(self.river_check.info() if self.river_check is not None else {}),
            **self.river_exits.info(),
            "same_bits_up_to_rows": self._same_bits(),
            "costs": self.river_costs.describe(time.time()),
        }

    def _same_bits(self: Any) -> int:
        """The most rows of a step with which a verified row has the same bits; 0 for none."""
        if self.river_alike is None:
            return 0
        most = int(self.river_alike.most)
        return most if most < SIZES[-1] else int(self.max_num_tokens)

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._river_depths = {}
        self._river_running = None
        self.river_requests.forget(scheduler_output.finished_req_ids)
        if (drafter := getattr(self, "drafter", None)) is not None:
            drafter.forget(scheduler_output.finished_req_ids)
        output = super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        if (done := self._river_running) is not None:
            self._river_watch.stop((self.river_exits.kind(done), done.table.num_rows))
        if self.device.type == "cpu":
            self._river_learn()
        return output

    def _prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Prepare a step, and read its requests: padding and attention depend on them."""
        found = super()._prepare_inputs(*args, **kwargs)  # type: ignore[misc]
        self._river_step = self.river_requests.step()
        self.river_exact = not all(one.request.may_draft for one in self._river_step)
        return found

    def _model_forward(self: Any, **inputs: Any) -> Any:
        """vLLM's documented override point for the forward pass of a real step."""
        self._river_learn()
        exits = self.river_exits
        table = exits.table(self._river_step)
        due = Pass(
            table, exits.spans(), inputs, True, head=exits.head(table), exact=self.river_exact
        )
        self._river_running = due
        self._river_watch.start()
        hidden = self.river_forward.run(due)
        depths = exits.depths(table)
        self._river_depths = dict(zip(self.input_batch.req_ids, depths, strict=False))
        return hidden

    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        self.river_forward.river.rest()
        output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        return put_depths(output, self._river_depths)

    def _river_learn(self: Any) -> None:
        """Correct the costs by the steps that have ended."""
        for (kind, rows), seconds in self._river_watch.read():
            if kind is not None:
                self.river_costs.observe(kind, rows, seconds)

    def propose_draft_token_ids(self: Any, *args: Any, **kwargs: Any) -> list[list[int]]:
        """Return no drafts yet: ``take_draft_token_ids`` makes them once the step's tokens are sent
        (``v1/engine/core.py``, ``post_step``), so no token waits for drafts."""
        self._river_draft = partial(super().propose_draft_token_ids, *args, **kwargs)  # type: ignore[misc]
        return []

    def take_draft_token_ids(self: Any) -> Any:
        draft, self._river_draft = self._river_draft, None
        if draft is not None:
            with torch.inference_mode():
                self._draft_token_ids = draft()
        return super().take_draft_token_ids()  # type: ignore[misc]

    def _input_fits_in_drafter(self: Any, common_attn_metadata: Any) -> bool:
        """Each request has its own limit; vLLM's check stops all near the end of the longest."""
        return common_attn_metadata is not None

    def _sample(self: Any, logits: torch.Tensor | None, spec_decode_metadata: Any) -> Any:
        """Sample; without the rejection sampler if no drafts or any ``logprob_token_ids`` exist.

        vLLM 0.32 calls it without drafts too. On the CPU it then fails at ``top_k`` for zero rows
        (``v1/sample/ops/topk_topp_sampler.py``, ``apply_top_k_only``). It also leaves out the
        log-probabilities of ``logprob_token_ids``: drafts of such a step are discarded."""
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
            # One row for each request, as for vLLM's bonus tokens.
            output = self.sampler(
                logits=logits, sampling_metadata=sampling, predict_bonus_token=True
            )
        if (thinking := sampling.thinking_budget_state_holder) is not None:
            # vLLM remembers a forced end for the drafts of its step, and would not force the end of
            # a second thought. Requests with a budget have no drafts (``request.py``).
            for state in thinking._state.values():
                state["bonus_token_forced"] = False
        return output
