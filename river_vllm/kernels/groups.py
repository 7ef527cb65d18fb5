"""A weight in 4-bit groups: what quantisers make and kernels take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

LEVELS = 15
"""Largest 4-bit code."""
BLOCK, GPU_BLOCK = 1 << 18, 1 << 26
"""Values that a quantiser works on at a time. On a CPU the float32 working set stays in the cache;
on a GPU it takes about 1 GiB, and most weights are one block: each is a wait for the device."""


@dataclass(frozen=True, slots=True)
class GroupedWeight:
    """``w ≈ (codes − zeros) · scales``; a group of input features shares a scale and a zero point.

    codes: uint8 ``[N, K]``, 0…15.
    scales: float32 ``[N, K / group]``, already rounded to the bfloat16 that kernels hold.
    zeros: float32 ``[N, K / group]``, zero points, not necessarily integers.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    @property
    def group_size(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    def dequantize(self) -> torch.Tensor:
        """float32 ``[N, K]``."""
        out_features, in_features = self.codes.shape
        grouped = self.codes.view(out_features, -1, self.group_size).float()
        values = (grouped - self.zeros.unsqueeze(-1)) * self.scales.unsqueeze(-1)
        return values.view(out_features, in_features)

    def rows(self, which: slice) -> GroupedWeight:
        """The weight of some of the outputs."""
        return GroupedWeight(self.codes[which], self.scales[which], self.zeros[which])

    def regrouped(self, group_size: int) -> GroupedWeight:
        """The same weight in smaller groups; ``group_size`` divides the present one."""
        times = self.group_size // group_size
        return replace(
            self,
            scales=self.scales.repeat_interleave(times, dim=1),
            zeros=self.zeros.repeat_interleave(times, dim=1),
        )


def min_max_grid(
    weight: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sixteen evenly spaced values over each group's range, widened to include 0.

    Returns:
        The weight by groups, float32 ``[N, G, group]``, and scales and integer zero points,
        float32 ``[N, G, 1]``. Scales are rounded to bfloat16, in which kernels keep them.
    """
    groups = weight.float().view(weight.shape[0], -1, group_size)
    low = groups.amin(dim=-1, keepdim=True).clamp(max=0)
    high = groups.amax(dim=-1, keepdim=True).clamp(min=0)
    scales = ((high - low) / LEVELS).clamp(min=1e-8).bfloat16().float()
    zeros = (-low / scales).round().clamp(0, LEVELS)
    return groups, scales, zeros


def finish(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> GroupedWeight:
    """A ``GroupedWeight`` from codes ``[N, G, group]`` and parameters ``[N, G, 1]``."""
    return GroupedWeight(
        codes.to(torch.uint8).view(codes.shape[0], -1),
        scales.squeeze(-1).contiguous(),
        zeros.squeeze(-1).contiguous(),
    )


def concatenate(parts: Sequence[GroupedWeight], dim: int = 0) -> GroupedWeight:
    """Weights joined along their outputs, or along their input features, which is ``dim`` 1."""
    names = ("codes", "scales", "zeros")
    return GroupedWeight(*(torch.cat([getattr(p, name) for p in parts], dim) for name in names))


def by_blocks(
    weight: torch.Tensor, quantize: Callable[[torch.Tensor], GroupedWeight]
) -> GroupedWeight:
    """The groups of ``weight`` ``[N, K]``, made block by block."""
    values = BLOCK if weight.device.type == "cpu" else GPU_BLOCK
    rows = max(1, values // weight.shape[1])
    return concatenate([quantize(block) for block in weight.split(rows)])
