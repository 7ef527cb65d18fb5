"""4-bit weights expanded to the activations' type for each product: for steps of many rows.

The other kernels are made for a few rows, for which reading the weight takes most of the time. For
hundreds of rows arithmetic does, in which a bf16 product is several times as fast. A code takes a
byte here.
"""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear
from river_vllm.kernels.groups import GroupedWeight


class DequantizeKernel(Int4Kernel):
    """``x @ ((codes − zeros) · scales)``, the weight rounded to the activations' type."""

    name = "dequantize"
    integer_zeros = False

    def unsupported(self, spec: LinearSpec) -> str | None:
        return None

    def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
        return _Expanded(weight, spec.dtype)


class _Expanded(PackedLinear):
    def __init__(self, weight: GroupedWeight, dtype: torch.dtype) -> None:
        out_features, in_features = weight.codes.shape
        self._codes = weight.codes.view(out_features, -1, weight.group_size)
        self._shape = (out_features, in_features)
        # For one ``addcmul``, which computes in float32 and rounds once.
        self._scales = weight.scales.to(dtype).unsqueeze(-1)
        self._offsets = (-weight.zeros * weight.scales).to(dtype).unsqueeze(-1)

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        codes = self._codes.to(self._scales.dtype)
        weight = torch.addcmul(self._offsets, codes, self._scales).view(self._shape)
        return linear(x, weight, bias)

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes + self._offsets.nbytes
