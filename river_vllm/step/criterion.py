"""The exit criterion: a number for each row, which is compared with the row's τ.

River uses the paper's state transition similarity s = cos(h^(l−1), h^(l)).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From the rows' states before and after a layer, ``[rows, hidden]``, to float32 ``[rows]`` in
[−1, 1], larger where a state has settled more; NaN where no threshold may admit a row."""

Reading = Callable[
    [torch.Tensor | None, torch.Tensor, torch.Tensor | None],
    tuple[torch.Tensor, torch.Tensor | None],
]
"""Reads the rows between two layers. Arguments: their states before the last layer, float32
``[rows, hidden]`` or None, and the next layer's hidden states and residual. Result: their states
now, and their values or None."""


def residual_stream(hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """The true residual stream between two layers, a new tensor ``[rows, hidden]`` in float32.

    vLLM's layers return their last output and the residual un-added
    (``models/llama.py``, ``LlamaDecoderLayer.forward``). The next norm adds them in place, so the
    result must not alias either. The sum is rounded as the model rounds it.
    """
    if residual is None:
        return hidden.to(torch.float32, copy=True)
    return (hidden + residual).float()


def by_torch(criterion: Criterion) -> Reading:
    """A criterion by its own torch operators, for any device and type."""

    def read(
        before: torch.Tensor | None, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        after = residual_stream(hidden, residual)
        return after, None if before is None else criterion(before, after)

    return read


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


CRITERION: Criterion = transition_similarity
"""The criterion in use; ``model/attach.py`` takes its native form where there is one."""
