"""Half-quadratic quantisation against a plain loop over one group at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights import hqq
from river_vllm.weights.hqq import quantize_hqq
from river_vllm.weights.rtn import quantize_rtn
from tests.unit.weights.test_rtn import weights


def group_errors(weight: torch.Tensor, packed: GroupedWeight) -> torch.Tensor:
    """Sum of absolute errors of each group, float64."""
    codes = packed.codes.double().view(*packed.scales.shape, -1)
    values = (codes - packed.zeros.double().unsqueeze(-1)) * packed.scales.double().unsqueeze(-1)
    return (values - weight.double().view_as(values)).abs().sum(dim=-1)


def reference_error(w: np.ndarray, scale: float, zero: float, integer: bool) -> float:
    """The error at which the alternation stops, for one group in float64."""
    target, best = w / scale, np.inf
    for _ in range(20):
        codes = np.clip(np.round(target + zero), 0, 15)
        error = np.abs(codes - target - zero).sum()
        if error >= best:
            break
        best = error
        zero = (codes - target).mean()
        if integer:
            zero = np.clip(np.round(zero), 0, 15)
    return float(best * scale)


@pytest.mark.parametrize("integer", [False, True], ids=["real", "integer"])
@pytest.mark.parametrize("group", [32, 128])
def test_every_group_reaches_what_the_plain_loop_reaches(group: int, integer: bool) -> None:
    weight = weights(8, 256)
    start, packed = quantize_rtn(weight, group), quantize_hqq(weight, group, integer)
    assert torch.equal(packed.scales, start.scales)
    errors = group_errors(weight, packed)
    for row in range(8):
        for g in range(256 // group):
            expected = reference_error(
                weight[row, g * group : (g + 1) * group].double().numpy(),
                float(start.scales[row, g]),
                float(start.zeros[row, g]),
                integer,
            )
            # float32 may take a half-way point to the other code: one weight of the group.
            assert float(errors[row, g]) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("integer", [False, True], ids=["real", "integer"])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_no_group_ends_above_its_round_to_nearest_error(group: int, integer: bool) -> None:
    weight = weights(64, 512, seed=3)
    rtn = group_errors(weight, quantize_rtn(weight, group))
    ours = group_errors(weight, quantize_hqq(weight, group, integer))
    # Errors of a group are compared in float32 while it is optimised.
    assert (ours <= rtn * (1 + 1e-5)).all()


def test_real_zeros_gain_on_most_groups() -> None:
    weight = weights(64, 512, seed=3)
    rtn = group_errors(weight, quantize_rtn(weight, 64))
    ours = group_errors(weight, quantize_hqq(weight, 64))
    assert (ours < rtn * 0.999).float().mean() > 0.5
    assert ours.sum() < rtn.sum()


def test_codes_and_integer_zeros_stay_in_four_bits() -> None:
    weight = weights(32, 256, seed=5)
    packed = quantize_hqq(weight, 32, integer_zeros=True)
    assert int(packed.codes.max()) <= 15
    assert torch.equal(packed.zeros, packed.zeros.round().clamp(0, 15))
    assert int(quantize_hqq(weight, 32).codes.max()) <= 15


@pytest.mark.parametrize("integer", [False, True], ids=["real", "integer"])
def test_a_group_does_not_depend_on_its_neighbours(integer: bool) -> None:
    weight = weights(16, 256, seed=7)
    together = quantize_hqq(weight, 32, integer)
    for row in range(16):
        for g in range(8):
            alone = quantize_hqq(weight[row : row + 1, g * 32 : (g + 1) * 32], 32, integer)
            assert torch.equal(together.codes[row, g * 32 : (g + 1) * 32], alone.codes[0])
            assert torch.equal(together.zeros[row, g], alone.zeros[0, 0])


@pytest.mark.parametrize("block", [1, 700, 1 << 18])
def test_the_block_size_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights(9, 256)
    expected = quantize_hqq(weight, 64)
    monkeypatch.setattr(hqq, "BLOCK", block)
    packed = quantize_hqq(weight, 64)
    assert torch.equal(packed.codes, expected.codes)
    assert torch.equal(packed.scales, expected.scales)
    assert torch.equal(packed.zeros, expected.zeros)


@pytest.mark.parametrize("value", [0.0, 0.75, -0.75])
def test_constant_groups(value: float) -> None:
    packed = quantize_hqq(torch.full((2, 64), value, dtype=torch.bfloat16), 32)
    expected = torch.full((2, 64), value)
    # The scale's own rounding to bfloat16 is all that can be lost.
    torch.testing.assert_close(packed.dequantize(), expected, rtol=2**-8, atol=1e-7)


def test_the_weight_itself_is_not_written_to() -> None:
    weight = weights(4, 64).float()
    before = weight.clone()
    quantize_hqq(weight, 32)
    assert torch.equal(weight, before)
