"""Weights to quantise, and what is asked of those of 4 bit."""

from __future__ import annotations

import torch

from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights.gptq import quantize_fit


def weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Groups of different widths and offsets, as bf16."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns // 32, 32, generator=generator)
    scale = torch.rand(rows, columns // 32, 1, generator=generator) * 3
    offset = torch.randn(rows, columns // 32, 1, generator=generator)
    return (values * scale + offset).view(rows, columns).bfloat16()


def same(a: GroupedWeight | None, b: GroupedWeight) -> bool:
    return a is not None and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("codes", "scales", "zeros")
    )


def fitted(
    weight: torch.Tensor,
    group_size: int = 64,
    integer: bool = False,
    features: torch.Tensor | None = None,
) -> GroupedWeight:
    """By least squares, with every input feature counting the same unless ``features`` says."""
    equal = torch.ones(weight.shape[1])
    return quantize_fit(weight, group_size, integer, equal if features is None else features)
