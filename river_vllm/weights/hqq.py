"""Half-quadratic quantisation: a real-valued zero point for each group, no calibration data.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023): minimise
the error of ``(codes − zero) · scale`` by alternating nearest codes with the closed-form zero,
``mean(codes − w / scale)``. Their shrinkage step passes only errors above 0.17 at its usual
settings (p = 0.7, β = 10), which the weights of language models never reach, so it is left out.

Each quantiser has a module: the name of a saved weight holds its module's source (``source.py``).
"""

from __future__ import annotations

import torch

from river_vllm.kernels.groups import LEVELS, GroupedWeight, by_blocks, finish, min_max_grid

STEPS = 20


def quantize_hqq(
    weight: torch.Tensor, group_size: int, integer_zeros: bool = False
) -> GroupedWeight:
    """Quantise ``weight`` ``[N, K]``; no group's error is above its min-max error.

    Args:
        integer_zeros: round every zero point to an integer, for kernels that hold it as one. Most
            of the gain over round-to-nearest is lost: the min-max zero point is an integer already.
    """
    return by_blocks(weight, lambda block: _hqq(block, group_size, integer_zeros))


def _hqq(weight: torch.Tensor, group_size: int, integer_zeros: bool) -> GroupedWeight:
    groups, scales, zeros = min_max_grid(weight, group_size)
    target = groups / scales
    best = zeros
    best_error = torch.full_like(zeros, torch.inf)
    scratch = torch.empty_like(target)
    for _ in range(STEPS):
        # The rounding error with these zero points, in units of the scale.
        missed = torch.add(target, zeros, out=scratch).round_().clamp_(0, LEVELS)
        missed = missed.sub_(target).sub_(zeros)
        drift = missed.mean(dim=-1, keepdim=True)
        error = missed.abs_().sum(dim=-1, keepdim=True)
        better = error < best_error
        if not better.any():
            break
        best = torch.where(better, zeros, best)
        best_error = torch.where(better, error, best_error)
        # A group stops once it no longer improves, whatever the others in its block do.
        moved = zeros + drift
        if integer_zeros:
            moved = moved.round().clamp_(0, LEVELS)
        zeros = torch.where(better, moved, zeros)
    codes = torch.add(target, best, out=scratch).round_().clamp_(0, LEVELS)
    return finish(codes, scales, best)
