"""Quantisers: from a bf16 weight to 4-bit groups, without training."""

from __future__ import annotations

from collections.abc import Callable

from river_vllm.errors import UnsupportedModelError
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights.hqq import quantize_hqq
from river_vllm.weights.rtn import quantize_rtn

QUANTIZERS: dict[str, Callable[..., GroupedWeight]] = {"rtn": quantize_rtn, "hqq": quantize_hqq}
"""From a weight ``[N, K]`` of any float type, a group size and ``integer_zeros``. They need the
weight alone; GPTQ (``gptq.py``) needs a calibration text as well."""

__all__ = ["QUANTIZERS", "GroupedWeight", "fitting_group_size"]


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
