"""Groups fitted by least squares, weighted or not."""

from __future__ import annotations

import pytest
import torch

from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights.fit import quantize_fit
from river_vllm.weights.rtn import quantize_rtn
from tests.unit.weights.test_rtn import weights

WEIGHT = weights(32, 256)


def importance(seed: int = 0) -> torch.Tensor:
    """Squares of inputs, a few of them a hundred times as large."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(256, generator=generator) + 0.1
    values[torch.randperm(256, generator=generator)[:12]] *= 100
    return values


def fitted(
    weight: torch.Tensor,
    group_size: int = 64,
    features: torch.Tensor | None = None,
    integer: bool = False,
) -> GroupedWeight:
    """With every input feature counting the same, unless ``features`` says otherwise."""
    equal = torch.ones(weight.shape[1])
    return quantize_fit(weight, group_size, integer, equal if features is None else features)


def group_errors(made: GroupedWeight, weight: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    missed = (made.dequantize() - weight.float()).square() * features
    return missed.view(weight.shape[0], -1, made.group_size).sum(dim=-1)


@pytest.mark.parametrize("integer", [False, True], ids=["real", "integer"])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("features", [None, importance()], ids=["equal", "weighted"])
def test_no_group_ends_above_its_round_to_nearest_error(
    group: int, integer: bool, features: torch.Tensor | None
) -> None:
    counted = torch.ones(256) if features is None else features
    made = fitted(WEIGHT, group, features, integer)
    ours = group_errors(made, WEIGHT, counted)
    theirs = group_errors(quantize_rtn(WEIGHT, group), WEIGHT, counted)
    # Errors are compared in float32 while a group is fitted.
    assert (ours <= theirs * (1 + 1e-4) + 1e-9).all()
    assert float(ours.sum()) < 0.95 * float(theirs.sum())


def test_weighting_lowers_the_weighted_error() -> None:
    features = importance()
    plain = group_errors(fitted(WEIGHT), WEIGHT, features).sum()
    weighted = group_errors(fitted(WEIGHT, features=features), WEIGHT, features).sum()
    assert float(weighted) < 0.8 * float(plain)


def test_only_ratios_within_a_group_matter() -> None:
    features = importance()
    scaled = (features.view(-1, 64) * torch.tensor([[1e-3], [1.0], [7.0], [1e4]])).flatten()
    a = fitted(WEIGHT, features=features)
    b = fitted(WEIGHT, features=scaled)
    # Sums of differently scaled numbers round differently: a code in a thousand may differ.
    assert float((a.codes != b.codes).float().mean()) < 1e-3


def test_a_group_that_no_input_reaches_counts_equally() -> None:
    features = importance()
    features[:64] = 0
    made = fitted(WEIGHT, features=features)
    plain = fitted(WEIGHT)
    assert torch.equal(made.codes[:, :64], plain.codes[:, :64])
    assert torch.isfinite(made.dequantize()).all()
