"""Picks drafted tokens from the river's logits, with the river's confidence in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

GREEDY = 1e-5
"""Temperatures below it are greedy (vLLM ``v1/sample/sampler.py``, ``_SAMPLING_EPS``)."""


@dataclass(frozen=True, slots=True)
class Picked:
    """One draft step's tokens.

    Attributes:
        tokens: int64 ``[rows]``, the picked tokens.
        confidence: float32 ``[rows]``, the river's probability of its likeliest token.
        probabilities: float32 ``[rows, vocabulary]`` that the picks were sampled from; None where
            every row is greedy.
    """

    tokens: torch.Tensor
    confidence: torch.Tensor
    probabilities: torch.Tensor | None

    def agreed(self, broadcast: Callable[[torch.Tensor], torch.Tensor]) -> Picked:
        """One rank's picks and confidences, on every rank: all ranks run the same draft passes."""
        both = torch.stack((self.tokens.double(), self.confidence.double()))
        tokens, confidence = broadcast(both)
        return replace(self, tokens=tokens.long(), confidence=confidence.float())


def pick(logits: torch.Tensor, rows: torch.Tensor, metadata: Any) -> Picked:
    """Pick a token for each row: greedy, or sampled at temperature, top-k and top-p.

    Rejection sampling is exact for every distribution of drafts (Leviathan et al. 2023). So the
    request's other settings apply to the backbone's logits only.

    Args:
        logits: ``[rows, vocabulary]``, not kept.
        rows: int64, the requests' rows in the batch.
        metadata: vLLM's ``SamplingMetadata`` of the batch.
    """
    logits = logits.float()
    best, tokens = logits.max(dim=-1)
    confidence = torch.exp(best - logits.logsumexp(dim=-1))
    if metadata.all_greedy:
        return Picked(tokens, confidence, None)
    temperature = metadata.temperature[rows]
    sampled = temperature >= GREEDY
    if not sampled.any():
        return Picked(tokens, confidence, None)
    logits /= torch.where(sampled, temperature, 1.0).unsqueeze(1)
    # Without a top-k the value is the size of the whole vocabulary.
    top_k = None if metadata.top_k is None else metadata.top_k[rows].clamp(max=logits.shape[1])
    top_p = None if metadata.top_p is None else metadata.top_p[rows]
    probabilities = apply_top_k_top_p(logits, top_k, top_p).softmax(dim=-1, dtype=torch.float32)
    drawn = _draw(probabilities, rows.tolist(), metadata.generators)
    return Picked(torch.where(sampled, drawn, tokens), confidence, probabilities)


def _draw(
    probabilities: torch.Tensor, rows: list[int], generators: Mapping[int, torch.Generator]
) -> torch.Tensor:
    """One column per row, by the exponential race that vLLM's own sampler runs."""
    noise = torch.empty_like(probabilities).exponential_()
    for place, row in enumerate(rows):
        if row in generators:
            noise[place].exponential_(generator=generators[row])
    return (probabilities / noise).argmax(dim=-1)
