"""Drafts and their fate on their way from the scheduler to the response.

In verified mode vLLM's per-step ``routed_experts`` array (see ``river_vllm.depths``) holds one
number per token: bit 0 says that the token was drafted and kept, bit 1 that it is the first of a
decode step, and what is above them how many tokens that step had drafted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from river_vllm.depths import Depths

if TYPE_CHECKING:
    from river_vllm.request import RiverSettings

_KEPT, _STEP, _DRAFTED = 1, 2, 2


@dataclass(frozen=True, slots=True)
class StepTally:
    """One step of one request.

    Attributes:
        drafted: tokens that the backbone checked.
        kept: tokens that it kept; they come first, its own token last.
        decode: False where the token came out of the prompt's last row.
    """

    drafted: int
    kept: int
    decode: bool

    def values(self, tokens: int) -> Depths:
        """One number for each of the ``tokens`` that the step brought; a stop may have cut kept
        ones off."""
        values = np.zeros(tokens, dtype=np.int16)
        values[: self.kept] = _KEPT
        if self.decode:
            values[0] |= _STEP | self.drafted << _DRAFTED
        return values


def step_tallies(
    requests: Mapping[str, Any], scheduler_output: Any, model_runner_output: Any
) -> dict[str, StepTally]:
    """What a step did for each of its requests; to be asked before the scheduler takes it in."""
    sampled = model_runner_output.sampled_token_ids
    if not sampled:
        return {}
    drafts = scheduler_output.scheduled_spec_decode_tokens
    return {
        request_id: StepTally(
            drafted=len(drafts.get(request_id, ())),
            kept=max(0, len(sampled[index]) - 1),
            decode=requests[request_id].num_output_tokens > 0,
        )
        for request_id, index in model_runner_output.req_id_to_index.items()
        if request_id in requests
    }


def drafted_trace(tally: Depths) -> list[int]:
    """For each token, in order: 1 where the river drafted it, 0 where the backbone made it."""
    kept: list[int] = (tally & _KEPT).tolist()
    return kept


@dataclass(slots=True)
class DraftSummary:
    """Drafts of one or more choices."""

    steps: int = 0
    """Decode steps: passes of the backbone."""
    tokens: int = 0
    """Tokens that they made."""
    drafted: int = 0
    accepted: int = 0
    """Drafted tokens in the answer; what a stop cut off does not count."""
    held: int = 0
    """No token exits, so none is held."""

    def add(self, tally: Depths) -> None:
        first = tally & _STEP != 0
        self.steps += int(first.sum())
        self.drafted += int((tally[first] >> _DRAFTED).sum())
        self.accepted += int((tally & _KEPT).sum())
        # The prompt's own token comes first and alone; all others are of decode steps.
        self.tokens += int(np.maximum.accumulate(first).sum())

    def by_layer(self, num_layers: int) -> dict[int, int]:
        """Tokens of decode steps by the backbone layers that they ran: all ran all."""
        return {num_layers: self.tokens} if self.tokens else {}

    def report(self, settings: RiverSettings, num_layers: int) -> dict[str, Any]:
        """What the ``river`` object of a response says of them; the two ratios are None where
        nothing was counted."""
        return {
            "num_layers": num_layers,
            "tokens": self.tokens,
            "steps": self.steps,
            "tokens_per_step": round(self.tokens / self.steps, 3) if self.steps else None,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "acceptance": round(self.accepted / self.drafted, 4) if self.drafted else None,
        }
