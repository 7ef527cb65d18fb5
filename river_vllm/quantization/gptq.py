"""GPTQ: codes that make up for each other's errors on the inputs that a calibration text produces.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (ICLR 2023), algorithm 1, with features in the order of falling importance and the
groups' grids fixed beforehand (``act_order`` with ``static_groups`` in the authors' code), so that
the stored weight needs no permutation. Wide inputs are taken in parts, each by itself: the cost
grows with the cube of the width (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from river_vllm.quantization.fit import quantize_fit
from river_vllm.quantization.groups import LEVELS, GroupedWeight

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a part of its mean (the authors' ``percdamp``)."""
BLOCK = 128
"""Features whose errors are spread lazily, as one product."""


def quantize_gptq(
    weight: torch.Tensor,
    group_size: int,
    moments: Sequence[torch.Tensor],
    whole_zeros: bool = False,
) -> GroupedWeight:
    """Quantise ``weight`` ``[N, K]`` for inputs with these second moments.

    Args:
        moments: mean of ``x xᵀ`` over the inputs, float32, one for each part of the inputs: its
            diagonal blocks, from the first feature on. Not changed.
        whole_zeros: only zero points that an integer can hold.
    """
    parts = weight.split([len(moment) for moment in moments], dim=1)
    made = [_part(*pair, group_size, whole_zeros) for pair in zip(parts, moments, strict=True)]
    return GroupedWeight(
        torch.cat([part.codes for part in made], dim=1),
        torch.cat([part.scales for part in made], dim=1),
        torch.cat([part.zeros for part in made], dim=1),
    )


def _part(
    weight: torch.Tensor, moment: torch.Tensor, group_size: int, whole_zeros: bool
) -> GroupedWeight:
    diagonal = moment.diagonal()
    grid = quantize_fit(weight, group_size, whole_zeros, diagonal)
    order = diagonal.argsort(descending=True)
    spread = _error_spread(moment, order)
    group_of = order // group_size
    # Transposed: a feature's column of the weight is then contiguous.
    scales = grid.scales.t()[group_of].contiguous()
    zeros = grid.zeros.t()[group_of].contiguous()
    left = weight.float().t()[order].contiguous()
    codes = torch.empty_like(left, dtype=torch.uint8)
    for start in range(0, left.shape[0], BLOCK):
        stop = min(start + BLOCK, left.shape[0])
        block = left[start:stop]
        errors = torch.empty_like(block)
        for row in range(stop - start):
            feature = start + row
            scale, zero = scales[feature], zeros[feature]
            code = (block[row] / scale).add_(zero).round_().clamp_(0, LEVELS)
            codes[feature] = code
            error = code.sub_(zero).mul_(scale).sub_(block[row]).neg_()
            errors[row] = error.div_(spread[feature, feature])
            block[row + 1 :].addr_(spread[feature, feature + 1 : stop], errors[row], alpha=-1)
        left[stop:].addmm_(spread[start:stop, stop:].t(), errors, alpha=-1)
    restored = torch.empty_like(codes)
    restored[order] = codes
    return GroupedWeight(restored.t().contiguous(), grid.scales, grid.zeros)


def _error_spread(moment: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse, features in ``order``."""
    damped = moment[order][:, order]
    mean = damped.diagonal().mean()
    damped.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)
    factor = torch.linalg.cholesky(damped)
    inverse = torch.cholesky_inverse(factor)
    return torch.linalg.cholesky(inverse, upper=True)
