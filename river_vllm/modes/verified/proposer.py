"""vLLM's drafter (runner V1): proposes after every step the tokens to verify in the next.

The runner accepts a ``DraftModelProposer`` (``v1/worker/gpu_model_runner.py``). This one has no
model, no K/V cache and no attention layers of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from vllm.v1.spec_decode.draft_model import DraftModelProposer

from river_vllm.config import river_config_of
from river_vllm.costs import Costs, Kind
from river_vllm.model.forward import Forward
from river_vllm.modes.mode import Timed
from river_vllm.modes.verified.depth import (
    Acceptance,
    Depth,
    best_depth,
    fixed_depth,
    guessing_depth,
)
from river_vllm.modes.verified.draft import (
    GREEDY,
    Draft,
    Found,
    Guess,
    Picked,
    guess_alone,
    joined,
    look_up,
    pick,
    run,
)
from river_vllm.step.table import Pass, Span


class RiverProposer(DraftModelProposer):
    """Drafts with the target model's own river."""

    def __init__(self, vllm_config: Any, device: torch.device, runner: Any) -> None:
        super().__init__(vllm_config, device, runner)
        # Otherwise the runner gathers the embeddings of pictures for it.
        self.supports_mm_inputs = False
        self._river_runner = runner
        self._most = int(self.speculative_config.num_speculative_tokens)
        self._size = vllm_config.model_config.get_vocab_size()
        self._acceptance = Acceptance()
        self._pending: dict[str, Draft] = {}
        self._adaptive = river_config_of(vllm_config).draft == "adaptive"
        # On a CPU a token costs nothing to read, and tells whether another pass pays.
        self._unread = device.type != "cpu"
        """Whether draft passes follow one another unread."""

    def _raise_if_mrope(self) -> None:
        """Do nothing: draft passes have the target's positions (``Forward.decode``)."""

    def _warn_if_multimodal(self) -> None:
        """Do nothing: a draft attends to a picture's K/V, which the target wrote."""

    def load_model(self, target_model: Any) -> None:
        """There is nothing to load: the draft model is the target."""

    def timed(self, forward: Forward, requests: int) -> dict[Kind, Timed]:
        """The kinds of passes whose times decide on drafts for up to ``requests`` requests."""
        if not self._adaptive:
            return {}
        layers = forward.river.num_layers
        most = min(requests * (1 + self._most), int(self._river_runner.max_num_tokens))
        draft = Timed(lambda rows: forward.idle(rows, 0, "draft"), most)
        verify = Timed(lambda rows: forward.idle(rows, layers, "backbone", exact=False), most)
        return {"draft": draft, **({"verify": verify} if forward.river.dense is not None else {})}

    def info(self) -> dict[str, Any]:
        """How much is drafted, for operators."""
        return {"verify": {"max_tokens": self._most, "adaptive": self._adaptive}}

    def initialize_attn_backend(
        self, kv_cache_config: Any, kernel_block_sizes: list[int] | None = None
    ) -> None:
        """Do nothing: the drafter has no attention layers of its own."""

    def initialize_cudagraph_keys(self, cudagraph_mode: Any) -> None:
        """Do nothing: the drafter has no graphs of its own (``model/graphs.py``)."""

    def dummy_run(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the target's own dummy run warms up everything."""

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop requests that have ended."""
        self._acceptance.forget(request_ids)
        for request_id in request_ids:
            self._pending.pop(request_id, None)

    def withdraw(self) -> None:
        """Forget the drafts under way, which are discarded: learn nothing from them."""
        self._pending.clear()

    def propose(
        self,
        *,
        next_token_ids: torch.Tensor,
        common_attn_metadata: Any,
        sampling_metadata: Any,
        num_rejected_tokens_gpu: torch.Tensor | None = None,
        **_: Any,
    ) -> list[list[int]]:
        """The tokens to verify in the next step, for each request of this one.

        ``common_attn_metadata`` describes the step that has just run; ``next_token_ids`` are the
        tokens that it sampled, one per request, not yet with K/V.
        """
        runner = self._river_runner
        lengths = common_attn_metadata.seq_lens.tolist()
        starts = common_attn_metadata.query_start_loc_cpu.tolist()
        tokens = next_token_ids.tolist()
        rejected = [0] * len(lengths)
        if num_rejected_tokens_gpu is not None:
            rejected = num_rejected_tokens_gpu.tolist()
        drafts = []
        for row, request_id in enumerate(runner.input_batch.req_ids):
            checked = starts[row + 1] - starts[row] - 1
            start = lengths[row] - checked - 1
            ended = self._learn(request_id, start, checked, rejected[row])
            if not (ended or runner.discard_request_mask.np[row]):
                position = lengths[row] - rejected[row]
                drafts.append(self._draft(request_id, row, position, tokens[row]))
        if any(draft.limit for draft in drafts):
            self._acceptance.fade()
        self._last_draft_probs = self._run(drafts, sampling_metadata)
        proposed: list[list[int]] = [[] for _ in lengths]
        for draft in drafts:
            proposed[draft.row] = draft.tokens
            if draft.tokens:
                self._pending[draft.request_id] = draft
        return proposed

    def _learn(self, request_id: str, position: int, checked: int, rejected: int) -> bool:
        """Learn from the request's last draft, if this step verified it; returns whether the draft
        has ended the answer."""
        draft = self._pending.pop(request_id, None)
        if draft is None or draft.position != position or not 0 < checked <= len(draft.tokens):
            return False
        kept, own = checked - rejected, len(draft.confidences)
        if own:
            self._acceptance.verified(request_id, draft.confidences[:checked], min(kept, own))
        if kept >= own:
            self._acceptance.guessed(request_id, draft.match, checked - own, kept - own)
        return not rejected and draft.tokens[checked - 1] in draft.ends

    def _draft(self, request_id: str, row: int, position: int, token: int) -> Draft:
        """The draft of a request, still empty, with the most tokens that it may have."""
        runner = self._river_runner
        request = runner.requests[request_id]
        params = request.sampling_params
        ends = (params.eos_token_id, *(params.stop_token_ids or ()))
        limit = 0
        if runner.river_requests[request_id].may_draft and token not in ends:
            # A step also makes a token of the backbone's own: the draft must leave room for it.
            left = runner.max_model_len - position - 1
            said = position + 1 - request.num_prompt_tokens
            if params.max_tokens is not None:
                left = min(left, params.max_tokens - said)
            if said < params.min_tokens:
                # To forbid an end vLLM counts the tokens before the drafts only
                # (``MinTokensLogitsProcessor.apply``): no step may cross the minimum.
                left = min(left, params.min_tokens - said)
            limit = max(0, min(self._most, left - 1))
        return Draft(
            request_id,
            row,
            position,
            token,
            limit,
            greedy=params.temperature < GREEDY,
            rate=self._acceptance.rate(request_id),
            ends=ends,
            first=position == request.num_prompt_tokens,
            constrained=params.structured_outputs is not None,
            known=runner.input_batch.token_ids_cpu[row, :position],
        )

    def _run(self, drafts: Sequence[Draft], metadata: Any) -> torch.Tensor | None:
        """Fill the drafts of a step; returns the distributions of the drafted tokens, float32
        ``[requests, drafted, vocabulary]``, or None if no token was sampled."""
        costs: Costs = self._river_runner.river_costs
        exact = self._river_runner.river_exact
        if metadata.logprob_token_ids:
            # The next step would discard drafts (``RiverRunnerMixin._sample``).
            return None
        if not self._adaptive:
            depth = fixed_depth(len(drafts))
        elif any(draft.first and draft.limit for draft in drafts):
            # Requests often arrive together: later prompts must not wait for drafts of the first.
            # A request that never drafts (``max_tokens: 1``, beam search) has no effect here.
            return None
        else:
            rates, limits = [d.rate for d in drafts], [d.limit for d in drafts]
            able = sum(limit > 0 for limit in limits)
            found = 0.0
            if able and not self._unread:
                ids = (draft.request_id for draft in drafts if draft.limit)
                found = sum(map(self._acceptance.guesses_found, ids)) / able
            depth = best_depth(costs, rates, limits, exact, found)
            if not depth.price and able and costs.try_drafts(len(drafts), able, exact):
                for draft in drafts:
                    draft.limit = min(draft.limit, 1)
                depth = fixed_depth(len(drafts))
            else:
                guessing = depth if depth.price else guessing_depth(costs, len(drafts), exact)
                if guess_alone(drafts, guessing, self._acceptance) or not depth.price:
                    # vLLM then takes every drafted token for certain, which guesses are.
                    return None
        drawn: dict[tuple[int, int], torch.Tensor] = {}

        def draft_pass(going: Sequence[Draft]) -> list[list[Found]]:
            start = time.perf_counter()
            room = min(draft.limit - len(draft.tokens) for draft in going)
            passes = min(depth.passes, room) if self._unread else 1
            guesses = self._guesses(going, depth) if passes == 1 else [Guess([], 0)] * len(going)
            picked = self._pick(self._pass(going, guesses), passes, going, metadata)
            tokens, sure = picked.read()
            found, row = [], 0
            for draft, (guessed, match) in zip(going, guesses, strict=True):
                right = 0
                while right < len(guessed) and guessed[right] == tokens[row + right]:
                    right += 1
                self._acceptance.passed(draft.request_id, match, len(guessed), right)
                mine = range(row, row + right + 1)
                if passes > 1:
                    mine = range(row, len(tokens), len(going))
                found.append([(tokens[i], sure[i]) for i in mine])
                if picked.probabilities is not None:
                    for place, i in enumerate(mine, len(draft.tokens)):
                        drawn[draft.row, place] = _drawn_from(draft, picked, i)
                row += 1 + len(guessed)
            costs.observe("draft", row, (time.perf_counter() - start) / passes)
            return found

        run(drafts, depth, self._acceptance, draft_pass)
        if self._adaptive:
            look_up(drafts, depth, self._acceptance)
        if not drawn:
            return None
        # vLLM takes as many rows of each request as it has drafted, of greedy ones too.
        most = max(len(draft.tokens) for draft in drafts)
        most = max(most, 1 + max(place for _, place in drawn))
        requests = self._river_runner.input_batch.num_reqs
        stacked = torch.zeros(requests, most, self._size, device=self.device)
        for (request, place), probabilities in drawn.items():
            stacked[request, place] = probabilities
        for draft in drafts:
            for place in range(len(draft.confidences), len(draft.tokens)):
                stacked[draft.row, place] = 0.0
                stacked[draft.row, place, draft.tokens[place]] = 1.0
        return stacked

    def _guesses(self, going: Sequence[Draft], depth: Depth) -> list[Guess]:
        """For each draft of the pass, as many guesses as pay for their rows."""
        rows, found = len(going), []
        for draft in going:
            # The pass makes a token of its own after the last guess.
            tokens, match = draft.guess(draft.limit - len(draft.tokens) - 1)
            rate = self._acceptance.guess_rate(draft.request_id, match)
            tokens = tokens[: depth.worth_guessing(len(going), rows, rate, len(tokens))]
            rows += len(tokens)
            found.append(Guess(tokens, match))
        return found

    def _pass(self, going: Sequence[Draft], guesses: Sequence[Guess]) -> Pass:
        """A river pass over each draft's last token and its guesses."""
        forward: Forward = self._river_runner.river_forward
        spans, tokens = [], []
        for draft, guess in zip(going, guesses, strict=True):
            spans.append(Span(draft.row, draft.next_position, 1 + len(guess.tokens)))
            tokens += [draft.token, *guess.tokens]
        return forward.decode(spans, torch.tensor(tokens, device=self.device), 0, "draft")

    def _pick(self, due: Pass, passes: int, going: Sequence[Draft], metadata: Any) -> Picked:
        """Run draft passes, each after the first over the tokens that the one before has found.

        The host reads no token of them. So greedy ones are one CUDA graph.
        """
        forward: Forward = self._river_runner.river_forward
        greedy = all(draft.greedy for draft in going)
        sampled = [] if greedy else [span.request for span in due.spans for _ in range(span.rows)]

        def picks(due: Pass) -> Picked:
            assert due.rows is not None
            owners = due.rows.requests[due.rows.owners]
            found: list[Picked] = []
            while True:
                picked = pick(forward.logits(due), owners, metadata, sampled)
                found.append(picked.agreed(forward.river.agreed))
                if len(found) == passes:
                    return joined(found)
                due = forward.following(due, found[-1].tokens)

        if not greedy or forward.graphs is None:
            return picks(due)
        return forward.graphs.chain(due, passes, picks)


def _drawn_from(draft: Draft, picked: Picked, row: int) -> torch.Tensor:
    """The distribution of a drafted token for rejection sampling, float32 ``[vocabulary]``.

    A grammar cuts a draft depending on its tokens. The remaining tokens then no longer follow the
    river's distribution. A token declared certain is accepted with the backbone's probability,
    which is exact for every way to choose it.
    """
    assert picked.probabilities is not None
    probabilities = picked.probabilities[row]
    if draft.constrained:
        certain = torch.zeros_like(probabilities)
        certain[picked.tokens[row]] = 1.0
        return certain
    return probabilities
