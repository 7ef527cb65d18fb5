"""How far a row's next-token distribution is from the backbone's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LIKELY = 512
"""Likeliest tokens whose probabilities are kept; all others count as one outcome."""

_SMALLEST = 1e-10


@dataclass(frozen=True, slots=True)
class LikelyTokens:
    """The likeliest next tokens of one row.

    greedy: the token that greedy sampling picks.
    ids: int32 ``[LIKELY]``.
    log_probs: float32 ``[LIKELY]``.
    """

    greedy: int
    ids: torch.Tensor
    log_probs: torch.Tensor


def likely_tokens(logits: torch.Tensor) -> list[LikelyTokens]:
    """Those of each row of the backbone's logits ``[rows, vocabulary]``."""
    logits = logits.float()
    head = logits.topk(min(LIKELY, logits.shape[1]), dim=-1)
    log_probs = head.values - logits.logsumexp(dim=-1, keepdim=True)
    # Equal logits are frequent in bf16, and topk puts them in any order; greedy sampling is argmax.
    greedy = logits.argmax(dim=-1).tolist()
    return list(map(LikelyTokens, greedy, head.indices.int(), log_probs))


def compare(
    backbone: list[LikelyTokens], logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare rows of another pass with the backbone's.

    The divergence is Σ p·log(p/q) over the backbone's ``LIKELY`` likeliest tokens and, as one
    outcome, all others. It is never above the divergence over the whole vocabulary (data-processing
    inequality), and with so many tokens hardly below it.

    Args:
        backbone: what the backbone gave for each of the rows.
        logits: of the other pass, ``[rows, vocabulary]``.

    Returns:
        Whether greedy sampling picks the backbone's token, bool ``[rows]``, and KL(backbone ‖
        other) in nats, float32 ``[rows]``.
    """
    logits = logits.float()
    ids = torch.stack([row.ids for row in backbone]).long()
    log_p = torch.stack([row.log_probs for row in backbone])
    log_q = logits.gather(1, ids) - logits.logsumexp(dim=-1, keepdim=True)
    p, q = log_p.exp(), log_q.exp()
    rest_p = (1 - p.sum(dim=-1)).clamp(min=_SMALLEST)
    rest_q = (1 - q.sum(dim=-1)).clamp(min=_SMALLEST)
    kl = (p * (log_p - log_q)).sum(dim=-1) + rest_p * (rest_p / rest_q).log()
    greedy = torch.tensor([row.greedy for row in backbone], device=logits.device)
    return logits.argmax(dim=-1) == greedy, kl.clamp(min=0.0)
