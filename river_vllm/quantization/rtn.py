"""Round to nearest: asymmetric min-max groups."""

from __future__ import annotations

import torch

from river_vllm.quantization.groups import LEVELS, GroupedWeight, finish, grouped_range


def quantize_rtn(weight: torch.Tensor, group_size: int, whole_zeros: bool = False) -> GroupedWeight:
    """Quantise ``weight`` ``[N, K]`` of any float type to the nearest point of each group's grid.

    Min-max zeros are whole numbers in any case, so ``whole_zeros`` changes nothing.
    """
    groups, scales, zeros = grouped_range(weight, group_size)
    codes = (groups / scales + zeros).round_().clamp_(0, LEVELS)
    return finish(codes, scales, zeros)
