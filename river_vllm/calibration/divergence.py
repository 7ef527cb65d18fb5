"""How far a row's next-token distribution is from the backbone's."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LIKELY = 512
"""Tokens of the backbone's distribution that are kept apart; the rest counts as one."""

_SMALLEST = 1e-10


@dataclass(frozen=True, slots=True)
class LikelyTokens:
    """The head of one row's distribution.

    greedy: the token that greedy sampling picks. ids: int32 ``[LIKELY]``. log_probs: float32
    ``[LIKELY]``.
    """

    greedy: int
    ids: torch.Tensor
    log_probs: torch.Tensor


def likely_tokens(logits: torch.Tensor) -> list[LikelyTokens]:
    """Of the backbone's logits ``[rows, vocabulary]``, row by row."""
    logits = logits.float()
    head = logits.topk(min(LIKELY, logits.shape[1]), dim=-1)
    log_probs = head.values - logits.logsumexp(dim=-1, keepdim=True)
    # Equal logits are frequent in bf16, and topk orders them as it likes: argmax is what counts.
    greedy = logits.argmax(dim=-1).tolist()
    return list(map(LikelyTokens, greedy, head.indices.int(), log_probs))


def compare(
    backbone: list[LikelyTokens], logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of another pass against the backbone's.

    The divergence is Σ p·log(p/q) over the backbone's ``LIKELY`` likeliest tokens and, as one
    outcome, all others: never above the divergence over the whole vocabulary (data-processing
    inequality), and with so many tokens apart hardly below it.

    Args:
        backbone: per row.
        logits: ``[rows, vocabulary]``.

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
