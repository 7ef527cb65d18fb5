"""The exit criterion: what τ is compared with."""

from __future__ import annotations

import pytest
import torch

from river_vllm.step.criterion import (
    transition_similarity,
)


def states(rows: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 576, generator=generator) * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_it_is_the_cosine_of_each_row(dtype: torch.dtype, scale: float) -> None:
    before = states(16, 0, scale).to(dtype)
    after = (before + states(16, 1, scale / 2)).to(dtype)
    expected = torch.cosine_similarity(before.double(), after.double(), dim=-1, eps=0)
    result = transition_similarity(before, after)
    assert result.dtype == torch.float32
    # Sums of 576 products in float32.
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)


def test_rounding_never_lifts_it_above_one() -> None:
    same = states(4096, 2)
    unclamped = (same * same).sum(-1) / (same.norm(dim=-1) ** 2)
    assert float(unclamped.max()) > 1.0  # the rounding that the clamp is for
    result = transition_similarity(same, same * 3)
    assert float(result.max()) <= 1.0
    assert float(result.min()) > 1.0 - 1e-5


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_no_threshold_admits_a_state_that_is_zero_or_not_finite(bad: float) -> None:
    good = states(1, 4)
    for pair in ((good, torch.full_like(good, bad)), (torch.full_like(good, bad), good)):
        value = transition_similarity(*pair)
        assert bool(value.isnan().all())
        assert not bool((value > -1.0).any())
