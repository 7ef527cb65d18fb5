"""The kernel of each projection shape: the fastest measured at load, or the one named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from river_vllm.errors import RiverError
from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear
from river_vllm.kernels.dequantize import DequantizeKernel
from river_vllm.kernels.native.kernel import NativeKernel
from river_vllm.kernels.scaled import ScaledInputs
from river_vllm.kernels.timing import medians
from river_vllm.kernels.torch_int4 import TorchInt4Kernel
from river_vllm.kernels.vllm_mp import VllmMixedPrecisionKernel
from river_vllm.quantization.groups import GroupedWeight

REPEATS = 15

Maker = Callable[[bool], GroupedWeight]
"""Makes the 4-bit groups of one projection; the argument asks for whole zero points."""


class KernelChooser:
    """Packs weights, each shape with the kernel that is fastest for one row.

    Args:
        name: ``auto`` (of those for few rows), or the only kernel to use.
        activations: ``bf16``, or ``int8`` for the kernels that round them.
        whole_zeros: whether weights can be had with whole zero points.
        agree: makes a rank's choice the same on every tensor-parallel rank; all ranks hold shards
            of the same shapes and ask in the same order.
    """

    def __init__(
        self,
        name: str = "auto",
        activations: str = "bf16",
        whole_zeros: bool = True,
        agree: Callable[[str], str] | None = None,
    ) -> None:
        int8 = activations == "int8"
        kernels: list[Int4Kernel] = [NativeKernel(int8), VllmMixedPrecisionKernel(int8)]
        if not int8:
            kernels.append(TorchInt4Kernel())
        if name == DequantizeKernel.name:
            kernels = [DequantizeKernel()]
        self._kernels = [k for k in kernels if name in ("auto", k.name)]
        self._whole_zeros = whole_zeros
        self._agree = agree
        self._chosen: dict[LinearSpec, Int4Kernel] = {}

    @property
    def names(self) -> list[str]:
        """The kernels in use."""
        return sorted({k.name for k in self._chosen.values()})

    @property
    def zero_points(self) -> str:
        """``whole`` where a kernel in use rounds them, else ``float``."""
        return "whole" if any(k.whole_zeros for k in self._chosen.values()) else "float"

    def pack(self, spec: LinearSpec, make: Maker) -> PackedLinear:
        """The 4-bit form of the weight that ``make`` quantises.

        Raises:
            RiverError: no kernel takes the shape; names each one's reason.
        """
        kernel = self._chosen.get(spec)
        if kernel is not None:
            return _pack(kernel, spec, make)
        reasons = {k.name: self._unsupported(k, spec) for k in self._kernels}
        usable = [k for k in self._kernels if reasons[k.name] is None]
        if not usable:
            why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            raise RiverError(
                f"no 4-bit kernel for a projection {spec.in_features} -> {spec.out_features} "
                f"({spec.dtype}, groups of {spec.group_size}): {why}; "
                "try --river-kernel auto, another --river-group-size, or --dtype bfloat16"
            )
        packed = {k: _pack(k, spec, make) for k in usable}
        if len(usable) == 1:
            best = usable[0]
        else:
            x = torch.randn(1, spec.in_features, device=spec.device).to(spec.dtype)
            calls = [partial(packed[k].apply, x, None) for k in usable]
            seconds = dict(zip(usable, medians(calls, REPEATS, spec.device), strict=True))
            best = min(usable, key=seconds.__getitem__)
            if self._agree is not None:
                agreed = self._agree(best.name)
                best = next(k for k in usable if k.name == agreed)
        self._chosen[spec] = best
        return packed[best]

    def _unsupported(self, kernel: Int4Kernel, spec: LinearSpec) -> str | None:
        if kernel.whole_zeros and not self._whole_zeros:
            return "needs whole zero points, and the weights have others"
        return kernel.unsupported(spec)


def _pack(kernel: Int4Kernel, spec: LinearSpec, make: Maker) -> PackedLinear:
    weight = make(kernel.whole_zeros)
    packed = kernel.pack(weight, spec)
    return packed if weight.inputs is None else ScaledInputs(packed, weight.inputs, spec)
