"""Round to nearest: asymmetric min-max groups."""

from __future__ import annotations

import torch

from river_vllm.kernels.groups import LEVELS, GroupedWeight, finish, min_max_grid


def quantize_rtn(
    weight: torch.Tensor, group_size: int, integer_zeros: bool = False
) -> GroupedWeight:
    """Quantise ``weight`` ``[N, K]`` of any float type to the nearest point of each group's grid.

    Args:
        integer_zeros: changes nothing, min-max zero points are integers in any case.
    """
    groups, scales, zeros = min_max_grid(weight, group_size)
    codes = (groups / scales + zeros).round_().clamp_(0, LEVELS)
    return finish(codes, scales, zeros)
