"""River's own 4-bit products for CPUs, faster than bf16 for many rows too.

Two products share one packed form. ``bf16`` multiplies by the activations as they are. ``int8``
rounds them to 8 bits in each group, a second approximation beside the 4-bit weights. It serves
drafts, and exits with ``activations="int8"``. In both, a row's result does not depend on the other
rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TypeAlias

import torch

from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear, not_for_cpu_bf16
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.kernels.native.backend import Backend
from river_vllm.kernels.native.library import backend
from river_vllm.kernels.native.pages import HugePages

LANES = 16
"""Output features of a block."""
LINE = 8
"""Input features of a line."""
GROUPS = (32, 64, 128)

_PAGES = HugePages()

_Product: TypeAlias = Callable[..., None]


class _Weight(ctypes.Structure):
    """``struct Weight`` of ``library.h``."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("out_features", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("group", ctypes.c_int64),
    )


class NativeKernel(Int4Kernel):
    """``int8`` or ``bf16`` of the back end for this CPU.

    Args:
        int8: whether activations are rounded.
        use: another back end than the best.
    """

    name = "native"
    integer_zeros = False

    def __init__(self, int8: bool = False, use: Backend | None = None) -> None:
        self.rounds_activations = int8
        self._given = use

    def unsupported(self, spec: LinearSpec) -> str | None:
        reason = not_for_cpu_bf16(spec, LANES)
        if reason is None and spec.group_size not in GROUPS:
            reason = f"groups must be of {', '.join(map(str, GROUPS))}, not {spec.group_size}"
        if reason is None and self._backend() is None:
            reason = "not built for this machine (see the warning in the log)"
        return reason

    def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
        backend = self._backend()
        assert backend is not None
        product = backend.int8 if self.rounds_activations else backend.bf16
        return _NativePacked(weight, product, backend.int8)

    def _backend(self) -> Backend | None:
        return self._given or backend()


class _NativePacked(PackedLinear):
    def __init__(self, weight: GroupedWeight, product: _Product, of_drafts: _Product) -> None:
        self._product = product
        self._of_drafts = of_drafts
        self._out_features, in_features = weight.codes.shape
        self._codes = _PAGES.hold(_pack_codes(weight.codes))
        self._scales = _PAGES.hold(_by_block(weight.scales))
        self._zeros = _PAGES.hold(_by_block(weight.zeros))
        self._weight = _Weight(
            self._codes.data_ptr(),
            self._scales.data_ptr(),
            self._zeros.data_ptr(),
            self._out_features,
            in_features,
            weight.group_size,
        )
        self._address = ctypes.addressof(self._weight)

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._run(self._product, x, bias)

    def draft(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._run(self._of_drafts, x, bias)

    def _run(self, product: _Product, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        x = x.contiguous()
        rows = x.shape[0]
        out = x.new_empty(rows, self._out_features)
        product(
            self._address,
            x.data_ptr(),
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            rows,
            torch.get_num_threads(),
        )
        return out

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes + self._zeros.nbytes


def _pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """uint8 ``[N, K]`` of 0…15 → lines of 64 bytes, see ``library.h``."""
    out_features, in_features = codes.shape
    split = codes.view(out_features // LANES, LANES, in_features // LINE, 2, LINE // 2)
    low, high = split.unbind(dim=3)
    packed = (low | (high << 4)).permute(0, 2, 1, 3)
    return _in_pairs(packed.flatten(2))


def _by_block(values: torch.Tensor) -> torch.Tensor:
    """float ``[N, G]`` → bfloat16, the 16 of a block and a group together."""
    out_features, groups = values.shape
    blocks = values.view(out_features // LANES, LANES, groups).transpose(1, 2)
    return _in_pairs(blocks.to(torch.bfloat16))


def _in_pairs(blocks: torch.Tensor) -> torch.Tensor:
    """``[B, items, width]`` → flat: blocks are interleaved in pairs, item by item; an odd last one
    follows as it is."""
    even = len(blocks) // 2 * 2
    pairs = blocks[:even].unflatten(0, (-1, 2)).transpose(1, 2)
    return torch.cat([pairs.flatten(), blocks[even:].flatten()])
