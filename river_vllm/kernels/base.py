"""The interface of a 4-bit kernel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from river_vllm.kernels.groups import GroupedWeight


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """The shard of a projection that one rank holds."""

    in_features: int
    out_features: int
    group_size: int
    dtype: torch.dtype
    device: torch.device


def not_for_cpu_bf16(spec: LinearSpec, lanes: int) -> str | None:
    """Why a CPU kernel that writes ``lanes`` bfloat16 outputs at a time cannot serve ``spec``."""
    if spec.device.type != "cpu":
        return f"runs on the CPU only, not on {spec.device.type}"
    if spec.dtype != torch.bfloat16:
        return f"needs bfloat16 activations, not {spec.dtype}"
    if spec.out_features % lanes:
        return f"output features must be a multiple of {lanes}, got {spec.out_features}"
    return None


class PackedLinear(ABC):
    """A 4-bit weight in a kernel's own layout."""

    @abstractmethod
    def apply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``x [rows, K] -> [rows, N]`` in ``x``'s dtype."""

    def draft(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """As ``apply``, but faster if possible: activations may be rounded to 8 bits."""
        return self.apply(x, bias)

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory of the packed weight, its scales and zero points."""


class Int4Kernel(ABC):
    """A way to multiply by 4-bit weights."""

    name: ClassVar[str]
    integer_zeros: ClassVar[bool]
    """Whether zero points must be integers."""
    rounds_activations: bool = False
    """Whether it rounds activations to 8 bits before it multiplies."""

    @abstractmethod
    def unsupported(self, spec: LinearSpec) -> str | None:
        """Why this kernel cannot serve ``spec``; None where it can."""

    @abstractmethod
    def pack(self, weight: GroupedWeight, spec: LinearSpec) -> PackedLinear:
        """Bring ``weight`` into the kernel's layout, on ``spec.device``."""
