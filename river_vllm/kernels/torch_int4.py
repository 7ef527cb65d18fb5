"""torch's int4 product for CPUs: for a few rows, where River's library could not be built."""

from __future__ import annotations

import torch

from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear, not_for_cpu_bf16
from river_vllm.kernels.groups import GroupedWeight

_MIDDLE = 8
"""The kernel computes ``(code − 8) · scale + offset``."""
_INNER_K_TILES = 2
_LANES = 16
_OPERATORS = ("_convert_weight_to_int4pack_for_cpu", "_weight_int4pack_mm_for_cpu")


class TorchInt4Kernel(Int4Kernel):
    """``aten::_weight_int4pack_mm_for_cpu``."""

    name = "torch"
    integer_zeros = False

    def unsupported(self, spec: LinearSpec) -> str | None:
        if not all(hasattr(torch.ops.aten, name) for name in _OPERATORS):
            return "this build of torch has no 4-bit product for CPUs"
        return not_for_cpu_bf16(spec, _LANES)

    def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
        codes = weight.codes.to(torch.int32).contiguous()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, _INNER_K_TILES)
        offsets = (_MIDDLE - weight.zeros) * weight.scales
        scales_and_zeros = (
            torch.stack([weight.scales.t(), offsets.t()], dim=-1).to(spec.dtype).contiguous()
        )
        return _TorchPacked(packed, scales_and_zeros, weight.group_size)


class _TorchPacked(PackedLinear):
    def __init__(self, packed: torch.Tensor, scales_and_zeros: torch.Tensor, group: int) -> None:
        self._packed = packed
        self._scales_and_zeros = scales_and_zeros
        self._group = group

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.contiguous(), self._packed, self._group, self._scales_and_zeros
        )
        return out if bias is None else out.add_(bias)

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + self._scales_and_zeros.nbytes
