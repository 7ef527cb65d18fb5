"""Scale and zero point of each group by least squares, from several clipped ranges.

Round-to-nearest spreads its sixteen levels over a group's whole range, and HQQ moves only the zero
point. Here each group starts from several clipped ranges and alternates nearest codes with the
least-squares scale and zero point of those codes, which have a closed form. Errors may be weighted
by input feature. Weighted by each input's mean square, the diagonal of GPTQ's Hessian, they are the
output's error if the inputs' features do not correlate.
"""

from __future__ import annotations

import torch

from river_vllm.kernels.groups import LEVELS, GroupedWeight, concatenate, finish, min_max_grid

CLIPS = (1.0, 0.92, 0.84, 0.76, 0.68)
"""Shares of a group's range from which a fit starts."""
STEPS = 6
BLOCK = 1 << 18
"""Weights worked on at a time: the float32 working set stays in the cache."""


def quantize_fit(
    weight: torch.Tensor, group_size: int, integer_zeros: bool, importance: torch.Tensor
) -> GroupedWeight:
    """Quantise ``weight`` ``[N, K]``; no group's error is above its min-max error.

    Args:
        integer_zeros: round every zero point to an integer.
        importance: weight of each input feature's squared error, float ``[K]``.
    """
    # Only ratios within a group matter; where all of a group are zero, its features count equally.
    features = importance.float().view(1, -1, group_size)
    features = features / features.mean(dim=-1, keepdim=True).clamp(min=1e-30)
    features = torch.where(features.sum(dim=-1, keepdim=True) > 0, features, 1.0)
    rows = max(1, BLOCK // weight.shape[1])
    return concatenate(
        [_fit(block, features, group_size, integer_zeros) for block in weight.split(rows)]
    )


def _fit(
    weight: torch.Tensor, importance: torch.Tensor, group_size: int, integer_zeros: bool
) -> GroupedWeight:
    groups, full_scales, full_zeros = min_max_grid(weight, group_size)
    best_scales, best_zeros = full_scales, full_zeros
    best_error = torch.full_like(full_scales, torch.inf)
    total = importance.sum(dim=-1, keepdim=True)
    mean_weight = (importance * groups).sum(dim=-1, keepdim=True) / total
    for clip in CLIPS:
        scales = (full_scales * clip).bfloat16().float()
        zeros = full_zeros
        for _ in range(STEPS):
            codes = (groups / scales).add_(zeros).round_().clamp_(0, LEVELS)
            missed = (codes - zeros).mul_(scales).sub_(groups)
            error = missed.square_().mul_(importance).sum(dim=-1, keepdim=True)
            better = error < best_error
            best_scales = torch.where(better, scales, best_scales)
            best_zeros = torch.where(better, zeros, best_zeros)
            best_error = torch.where(better, error, best_error)
            # Weighted least squares of w = scale · code + offset.
            mean_code = (importance * codes).sum(dim=-1, keepdim=True) / total
            centred = codes - mean_code
            spread = (importance * centred.square()).sum(dim=-1, keepdim=True)
            slope = (importance * centred).mul_(groups).sum(dim=-1, keepdim=True) / spread
            usable = (spread > 0) & (slope > 1e-8)
            scales = torch.where(usable, slope, scales).bfloat16().float()
            zeros = mean_code - mean_weight / scales
            if integer_zeros:
                zeros = zeros.round_().clamp_(0, LEVELS)
    codes = (groups / best_scales).add_(best_zeros).round_().clamp_(0, LEVELS)
    return finish(codes, best_scales, best_zeros)
