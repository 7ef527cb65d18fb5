"""The kernel of each projection: the first of a fixed order that takes it, or the one named."""

from __future__ import annotations

from collections.abc import Callable

from river_vllm.compat import init_logger
from river_vllm.errors import RiverError
from river_vllm.kernels.base import Int4Kernel, LinearSpec, PackedLinear
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.kernels.native.kernel import NativeKernel
from river_vllm.kernels.native.library import backend
from river_vllm.kernels.others import DequantizeKernel, TorchInt4Kernel, VllmMixedPrecisionKernel

logger = init_logger("vllm.river")

Maker = Callable[[bool], GroupedWeight]
"""Makes the 4-bit groups of one projection; the argument asks for integer zero points."""


class KernelChooser:
    """Packs weights, each with the first kernel that takes its shape.

    Kernels are ordered by speed for a few rows: River's own on every CPU that has a back end,
    torch's where the library could not be built, vLLM's on GPUs. Nothing is timed, so equal
    machines make equal choices, and so do the ranks of one engine.

    ``name`` is ``auto`` or the only kernel to use. With ``activations`` of ``int8`` kernels round
    them, if any does. ``integer_zeros``: the weights' source can give integer zero points.
    """

    def __init__(
        self, name: str = "auto", activations: str = "bf16", integer_zeros: bool = True
    ) -> None:
        int8 = activations == "int8"
        native, torchs = NativeKernel(int8, backend), TorchInt4Kernel()
        vllms = VllmMixedPrecisionKernel(int8)
        # torch's kernel does not round activations, so it comes last for int8.
        kernels: list[Int4Kernel] = [native, vllms, torchs] if int8 else [native, torchs, vllms]
        if name == DequantizeKernel.name:
            kernels = [DequantizeKernel()]
        self._kernels = [k for k in kernels if name in ("auto", k.name)]
        self._int8 = int8
        self._integer_zeros = integer_zeros
        self._chosen: dict[LinearSpec, Int4Kernel] = {}

    @property
    def names(self) -> list[str]:
        """The kernels in use."""
        return sorted({k.name for k in self._chosen.values()})

    @property
    def activations(self) -> str:
        """Type of the activations in products; ``int8`` only if every kernel in use rounds them."""
        rounds = self._int8 and all(k.rounds_activations for k in self._chosen.values())
        return "int8" if rounds else "bf16"

    @property
    def zero_points(self) -> str:
        """``integer`` where a kernel in use needs them so, else ``float``."""
        return "integer" if any(k.integer_zeros for k in self._chosen.values()) else "float"

    def refusal(self, spec: LinearSpec) -> str | None:
        """Why neither River's own kernels nor torch's takes ``spec``; None if one does."""
        reasons = []
        for kernel in self._kernels:
            if not isinstance(kernel, VllmMixedPrecisionKernel):
                reason = kernel.unsupported(spec)
                if reason is None:
                    return None
                reasons.append(f"{kernel.name}: {reason}")
        return "; ".join(reasons) or "--river-kernel vllm is vLLM's own"

    def pack(self, spec: LinearSpec, make: Maker) -> PackedLinear:
        """The 4-bit form of the weight that ``make`` quantises.

        Raises:
            RiverError: no kernel takes the shape; names each one's reason.
        """
        kernel = self._chosen.get(spec)
        if kernel is None:
            kernel = self._chosen[spec] = self._first(spec)
        return kernel.pack(make(kernel.integer_zeros), spec)

    def _first(self, spec: LinearSpec) -> Int4Kernel:
        reasons: list[str] = []
        for kernel in self._kernels:
            reason = kernel.unsupported(spec)
            if kernel.integer_zeros and not self._integer_zeros:
                reason = "needs integer zero points, and the weights have others"
            if reason is None:
                if self._int8 and not kernel.rounds_activations:
                    logger.warning_once(
                        "River: activations stay bf16, no kernel here rounds them to int8 (%s)",
                        "; ".join(reasons),
                    )
                return kernel
            reasons.append(f"{kernel.name}: {reason}")
        raise RiverError(
            f"no 4-bit kernel for a projection {spec.in_features} -> {spec.out_features} "
            f"({spec.dtype}, groups of {spec.group_size}): {'; '.join(reasons)}; "
            "try --river-kernel auto, another --river-group-size, or --dtype bfloat16"
        )
