"""AWQ: features with large inputs are scaled up before they are rounded, and their inputs down.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration"
(MLSys 2024), section 3.2: the factors are the inputs' mean size to the power α, and α is the one
whose rounded weight has the smallest error of the product. What differs here: size is the root
mean square, and the error an exact sum, since the second moments are at hand; grids are fitted by
least squares (``fit.py``) in the place of a search for clipped ranges; and each module's own
inputs are scaled, since the norm before it belongs to the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from river_vllm.quantization.fit import quantize_fit
from river_vllm.quantization.groups import GroupedWeight
from river_vllm.quantization.moments import product_power
from river_vllm.quantization.rtn import quantize_rtn

ALPHAS = tuple(step / 20 for step in range(20))
"""The authors' search; 0 scales nothing."""
SAMPLE = 256
"""Outputs that decide about α."""
SMALLEST = 1e-3
"""Of the mean size: what an input that is hardly ever used counts as."""


def quantize_awq(
    weight: torch.Tensor,
    group_size: int,
    moments: Sequence[torch.Tensor],
    whole_zeros: bool = False,
) -> GroupedWeight:
    """Quantise ``weight`` ``[N, K]`` for inputs with these second moments.

    Args:
        moments: mean of ``x xᵀ`` over the inputs, float32, one for each part of the inputs: its
            diagonal blocks, from the first feature on.
        whole_zeros: only zero points that an integer can hold.

    Returns:
        Groups with ``inputs``.
    """
    importance = torch.cat([moment.diagonal() for moment in moments])
    size = importance.sqrt()
    size = size.clamp(min=SMALLEST * float(size.mean())) if size.any() else torch.ones_like(size)
    rows = weight[:: -(-len(weight) // SAMPLE)].float()

    def error(alpha: float) -> float:
        inputs = _inputs(size, alpha)
        made = replace(quantize_rtn(rows / inputs, group_size), inputs=inputs)
        return product_power(made.dequantize() - rows, moments)

    inputs = _inputs(size, min(ALPHAS, key=error))
    scaled = weight.float() / inputs
    made = quantize_fit(scaled, group_size, whole_zeros, importance * inputs.square())
    return replace(made, inputs=inputs)


def _inputs(size: torch.Tensor, alpha: float) -> torch.Tensor:
    """What inputs are multiplied by, in the bfloat16 that products have it in; about 1 in all."""
    factors = size.pow(-alpha)
    return (factors / (factors.max() * factors.min()).sqrt()).bfloat16().float()
