"""State transition similarity (PAPER, exit decision): s = cos(h^(l−1), h^(l))."""

from __future__ import annotations

import torch


def residual_stream(hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """The true residual stream between two layers, a new tensor ``[rows, hidden]``.

    vLLM's layers return their last output and the residual un-added
    (``models/llama.py``, ``LlamaDecoderLayer.forward``), and the next norm adds them in place,
    so what is kept must not alias either.
    """
    return hidden.clone() if residual is None else hidden + residual


def transition_similarity(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Cosine of each row's state before and after a layer.

    Args:
        before, after: ``[rows, hidden]``, any float type; computed in float32.

    Returns:
        float32 ``[rows]``, at most 1 (rounding must not let a token pass τ = 1); NaN where a
        state is zero or not finite, which no threshold admits.
    """
    a, b = before.float(), after.float()
    dot = torch.linalg.vecdot(a, b)
    norms = torch.linalg.vecdot(a, a) * torch.linalg.vecdot(b, b)
    return (dot / norms.sqrt()).clamp_(max=1.0)
