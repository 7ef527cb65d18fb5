"""Quantisers that need the weight alone, by name, and round-to-nearest, the plain one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from river_vllm.errors import UnsupportedModelError
from river_vllm.kernels.groups import LEVELS, GroupedWeight, finish, min_max_grid
from river_vllm.weights.hqq import quantize_hqq


def fitting_group_size(in_features: int, wanted: int) -> int:
    """The largest group size up to ``wanted`` that divides a layer's input features.

    Raises:
        UnsupportedModelError: not even 32 divides them.
    """
    for group in (128, 64, 32):
        if group <= wanted and in_features % group == 0:
            return group
    raise UnsupportedModelError(
        f"a projection has {in_features} input features; 4-bit groups need a multiple of 32"
    )


def quantize_rtn(
    weight: torch.Tensor, group_size: int, integer_zeros: bool = False
) -> GroupedWeight:
    """Quantise ``weight`` ``[N, K]`` of any float type to the nearest point of each group's grid,
    whose zero points are integers in any case."""
    groups, scales, zeros = min_max_grid(weight, group_size)
    codes = (groups / scales + zeros).round_().clamp_(0, LEVELS)
    return finish(codes, scales, zeros)


QUANTIZERS: dict[str, Callable[..., GroupedWeight]] = {"rtn": quantize_rtn, "hqq": quantize_hqq}
"""From a weight ``[N, K]`` of any float type, a group size and ``integer_zeros``. GPTQ
(``gptq.py``) needs a calibration text as well."""
