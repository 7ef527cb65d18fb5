"""A 4-bit product of scaled inputs, as weights from AWQ checkpoints need it."""

from __future__ import annotations

import torch

from river_vllm.kernels.base import LinearSpec, PackedLinear


class ScaledInputs(PackedLinear):
    """``(x · scales) @ Wᵀ``, around any kernel's packed weight.

    Args:
        scales: of the input features, float ``[K]``.
    """

    def __init__(self, packed: PackedLinear, scales: torch.Tensor, spec: LinearSpec) -> None:
        self._packed = packed
        self._scales = scales.to(spec.device, spec.dtype)

    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._packed.apply(x * self._scales, bias)

    def draft(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._packed.draft(x * self._scales, bias)

    @property
    def nbytes(self) -> int:
        return self._packed.nbytes + self._scales.nbytes
