"""River's native CPU kernel: 4-bit weights, activations rounded to 8 bits per group.

Integer products run at the speed of the memory where 16-bit ones are bound by arithmetic, and go
on paying with many rows. The rounding of the activations is an approximation of its own, on top
of the 4-bit weights, so it is used only where it is asked for (``activations="int8"``).
"""

from __future__ import annotations

import torch

from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear, not_for_cpu_bf16
from river_vllm.kernels.native import build
from river_vllm.quantization.groups import GroupedWeight

LANES = 16
LINE = 8


class NativeW4A8Kernel(Int4Kernel):
    """``kernels/native/w4a8.cpp``."""

    name = "native"
    whole_zeros = False

    def unsupported(self, spec: LinearSpec) -> str | None:
        return not_for_cpu_bf16(spec, LANES) or build.unsupported()

    def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
        return _NativePacked(weight)


class _NativePacked(PackedLinear):
    def __init__(self, weight: GroupedWeight) -> None:
        self._library = build.library()
        self._out_features, self._in_features = weight.codes.shape
        self._group = weight.group_size
        self._codes = _pack_codes(weight.codes)
        self._scales = _by_block(weight.scales)
        self._zeros = _by_block(weight.zeros)

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        x = x.contiguous()
        count = x.shape[0]
        groups = self._in_features // self._group
        out = x.new_empty(count, self._out_features)
        codes = torch.empty(count, self._in_features, dtype=torch.int8)
        scales = torch.empty(2, count, groups, dtype=torch.float32)
        self._library.river_w4a8(
            self._codes.data_ptr(),
            self._scales.data_ptr(),
            self._zeros.data_ptr(),
            x.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            codes.data_ptr(),
            scales.data_ptr(),
            scales[1].data_ptr(),
            count,
            self._out_features,
            self._in_features,
            self._group,
            torch.get_num_threads(),
        )
        return out

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes + self._zeros.nbytes


def _pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """uint8 ``[N, K]`` of 0…15 → ``[N / 16, K / 8, 64]``, see ``w4a8.cpp``."""
    out_features, in_features = codes.shape
    split = codes.view(out_features // LANES, LANES, in_features // LINE, 2, LINE // 2)
    low, high = split.unbind(dim=3)
    packed = (low | (high << 4)).permute(0, 2, 1, 3)
    return packed.reshape(out_features // LANES, in_features // LINE, -1).contiguous()


def _by_block(values: torch.Tensor) -> torch.Tensor:
    """float ``[N, G]`` → bfloat16 ``[N / 16, G, 16]``."""
    out_features, groups = values.shape
    blocks = values.view(out_features // LANES, LANES, groups).transpose(1, 2)
    return blocks.to(torch.bfloat16).contiguous()
