"""Quantisers: from a bf16 weight to 4-bit groups, without training."""

from __future__ import annotations

from typing import Protocol

import torch

from river_vllm.errors import UnsupportedModelError
from river_vllm.quantization.groups import GroupedWeight
from river_vllm.quantization.hqq import quantize_hqq
from river_vllm.quantization.rtn import quantize_rtn


class Quantizer(Protocol):
    """Turns a weight ``[N, K]`` of any float type into 4-bit groups."""

    def __call__(
        self, weight: torch.Tensor, group_size: int, integer_zeros: bool = False
    ) -> GroupedWeight: ...


QUANTIZERS: dict[str, Quantizer] = {"rtn": quantize_rtn, "hqq": quantize_hqq}
"""Those that need the weight alone. GPTQ (``gptq.py``) needs a calibration text as well."""

__all__ = ["QUANTIZERS", "GroupedWeight", "Quantizer", "fitting_group_size"]


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
