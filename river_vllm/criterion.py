"""Exit criteria: a number for each row, compared with its τ.

The paper's is the state transition similarity s = cos(h^(l−1), h^(l)) (exit decision). The other
one looks at the norm of the state alone (``docs/experiments.md``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from river_vllm.config import CriterionName

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From the rows' states before and after a layer, ``[rows, hidden]``, to float32 ``[rows]`` in
[−1, 1], larger where a state has settled more; NaN where no threshold may admit a row."""

Reading = Callable[
    [torch.Tensor | None, torch.Tensor, torch.Tensor | None],
    tuple[torch.Tensor, torch.Tensor | None],
]
"""Reads the rows between two layers: from their states before the last layer (float32
``[rows, hidden]``, None where no value is needed) and what the next layer is called with, to their
states now and their values."""


def residual_stream(hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """The true residual stream between two layers, a new tensor ``[rows, hidden]`` in float32.

    vLLM's layers return their last output and the residual un-added
    (``models/llama.py``, ``LlamaDecoderLayer.forward``), and the next norm adds them in place,
    so what is kept must not alias either. The sum is rounded as the model rounds it.
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


def smallness(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """(1 − ρ)/(1 + ρ) of each row, with ρ the root mean square of its state after the layer.

    States grow from layer to layer, so under one τ a token leaves early or not at all: cheaper than
    letting all leave half-way, where an exit costs as much as an early one.

    Args:
        before: not looked at.
        after: ``[rows, hidden]``, any float type; computed in float32.

    Returns:
        float32 ``[rows]``, in (−1, 1]; NaN where the state is not finite.
    """
    rms = after.float().square().mean(dim=-1).sqrt()
    return (1 - rms) / (1 + rms)


CRITERIA: dict[CriterionName, Criterion] = {"cosine": transition_similarity, "norm": smallness}
"""By their names in the settings. ``layers/attach.py`` takes a native form where there is one."""
