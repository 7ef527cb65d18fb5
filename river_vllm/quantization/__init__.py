"""Quantisers: from a bf16 weight to 4-bit groups, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from river_vllm.errors import UnsupportedModelError
from river_vllm.quantization.awq import quantize_awq
from river_vllm.quantization.gptq import quantize_gptq
from river_vllm.quantization.groups import GroupedWeight
from river_vllm.quantization.hqq import quantize_hqq
from river_vllm.quantization.rtn import quantize_rtn


class Quantizer(Protocol):
    """Turns a weight ``[N, K]`` of any float type into 4-bit groups."""

    def __call__(
        self, weight: torch.Tensor, group_size: int, whole_zeros: bool = False
    ) -> GroupedWeight: ...


class CalibratedQuantizer(Protocol):
    """Turns a weight ``[N, K]`` into 4-bit groups, given the mean ``x xᵀ`` of its inputs.

    The moments are diagonal blocks, from the first feature on.
    """

    def __call__(
        self,
        weight: torch.Tensor,
        group_size: int,
        moments: Sequence[torch.Tensor],
        whole_zeros: bool = False,
    ) -> GroupedWeight: ...


QUANTIZERS: dict[str, Quantizer] = {"rtn": quantize_rtn, "hqq": quantize_hqq}
"""Those that need the weight alone."""

CALIBRATED: dict[str, CalibratedQuantizer] = {"gptq": quantize_gptq, "awq": quantize_awq}
"""Those that need a calibration text (``river-vllm quantize``)."""

__all__ = [
    "CALIBRATED",
    "QUANTIZERS",
    "CalibratedQuantizer",
    "GroupedWeight",
    "Quantizer",
    "fitting_group_size",
]


def fitting_group_size(in_features: int, wanted: int) -> int:
    """The largest group not above ``wanted`` that divides a layer's width.

    Raises:
        UnsupportedModelError: not even 32 divides it.
    """
    for group in (128, 64, 32):
        if group <= wanted and in_features % group == 0:
            return group
    raise UnsupportedModelError(
        f"a projection has {in_features} input features; 4-bit groups need a multiple of 32"
    )
