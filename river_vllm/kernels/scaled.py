"""A 4-bit product of scaled inputs: AWQ keeps a factor for each input feature beside its weight."""

from __future__ import annotations

import torch

from river_vllm.kernels.base import LinearSpec, PackedLinear


class ScaledInputs(PackedLinear):
    """``(x · factors) @ Wᵀ``, around any kernel's packed weight.

    Args:
        factors: float ``[K]``.
    """

    def __init__(self, packed: PackedLinear, factors: torch.Tensor, spec: LinearSpec) -> None:
        self._packed = packed
        self._factors = factors.to(spec.device, spec.dtype)

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._packed.apply(x * self._factors, bias)

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + self._factors.nbytes
