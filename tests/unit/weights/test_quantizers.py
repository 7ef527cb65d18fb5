"""What holds of every quantiser, and the group size of a layer."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch

from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.kernels import groups
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights.hqq import quantize_hqq
from river_vllm.weights.quantizers import QUANTIZERS, fitting_group_size, quantize_rtn
from tests.unit.weights.support import fitted, same, weights


@pytest.mark.parametrize(
    ("in_features", "wanted", "expected"),
    [(4096, 128, 128), (576, 128, 64), (1568, 128, 32), (32, 128, 32)],
)
def test_group_size_is_halved_until_it_fits(in_features: int, wanted: int, expected: int) -> None:
    assert fitting_group_size(in_features, wanted) == expected


@pytest.mark.parametrize("in_features", [16, 100])
def test_a_width_that_no_group_divides_is_named(in_features: int) -> None:
    with pytest.raises(RiverError, match=f"{in_features} input features.*multiple of 32"):
        fitting_group_size(in_features, 128)


def test_every_quantizer_that_can_be_configured_exists() -> None:
    names = set(get_args(RiverConfig.model_fields["quantizer"].annotation))
    # GPTQ's weights are made beforehand.
    assert names == {*QUANTIZERS, "gptq"}


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_float_type_comes_back_within_half_a_step(name: str, dtype: torch.dtype) -> None:
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    packed = QUANTIZERS[name](weight, 32)
    # Half a step, and what the zero's own rounding or movement may push over the grid's end.
    steps = (packed.dequantize() - weight.float()).abs().view(8, 3, 32) / packed.scales[..., None]
    assert float(steps.max()) <= 1.01
    assert float(steps.mean()) <= 0.3


ALL = {**QUANTIZERS, "fit": fitted}
every_quantizer = pytest.mark.parametrize("name", sorted(ALL))


@every_quantizer
@pytest.mark.parametrize("value", [0.0, 0.75, -0.75])
def test_constant_groups_come_back(name: str, value: float) -> None:
    packed = ALL[name](torch.full((2, 64), value, dtype=torch.bfloat16), 32)
    # The scale's own rounding to bfloat16 is all that can be lost.
    torch.testing.assert_close(
        packed.dequantize(), torch.full((2, 64), value), rtol=2**-8, atol=1e-7
    )


@every_quantizer
def test_scales_are_what_a_bfloat16_kernel_holds_and_codes_four_bits(name: str) -> None:
    weight = weights(32, 256, seed=5).float()
    before = weight.clone()
    for integer in (False, True):
        packed = ALL[name](weight, 32, integer)
        assert torch.equal(packed.scales, packed.scales.bfloat16().float())
        assert int(packed.codes.max()) <= 15
        assert not integer or torch.equal(packed.zeros, packed.zeros.round().clamp(0, 15))
    assert torch.equal(weight, before), "the weight itself is not written to"


@every_quantizer
@pytest.mark.parametrize("integer", [False, True], ids=["real", "integer"])
def test_a_group_does_not_depend_on_its_neighbours(name: str, integer: bool) -> None:
    weight = weights(16, 256, seed=7)
    together = ALL[name](weight, 32, integer)
    for row, group in itertools.product(range(0, 16, 5), range(8)):
        part = weight[row : row + 1, group * 32 : (group + 1) * 32].contiguous()
        alone = ALL[name](part, 32, integer)
        assert torch.equal(together.codes[row, group * 32 : (group + 1) * 32], alone.codes[0])
        assert torch.equal(together.zeros[row, group], alone.zeros[0, 0])
        assert torch.equal(together.scales[row, group], alone.scales[0, 0])


@pytest.mark.parametrize("name", ["hqq", "fit"])
@pytest.mark.parametrize("block", [1, 700, 1 << 18])
def test_the_block_size_changes_nothing(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ALL[name](weights(9, 256), 64)
    monkeypatch.setattr(groups, "BLOCK", block)
    assert same(ALL[name](weights(9, 256), 64), expected)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_every_code_is_the_nearest_point_of_its_groups_grid(group: int) -> None:
    weight = weights(6, 256)
    packed = quantize_rtn(weight, group)
    assert packed.codes.shape == (6, 256) and packed.codes.dtype == torch.uint8
    assert packed.scales.shape == packed.zeros.shape == (6, 256 // group)
    assert packed.group_size == group
    values = weight.double().view(6, -1, group)
    low, high = values.amin(dim=-1).clamp(max=0), values.amax(dim=-1).clamp(min=0)
    scales, zeros = packed.scales.double(), packed.zeros.double()
    # bfloat16 has eight significant bits, so rounding moves a scale by at most 2^-9.
    torch.testing.assert_close(scales, (high - low) / 15, rtol=2**-8, atol=0)
    assert torch.equal(zeros, (-low / scales).round().clamp(0, 15))
    grid = (torch.arange(16) - zeros[..., None]) * scales[..., None]
    missed = (values[..., None] - grid[..., None, :]).abs()
    chosen = missed.gather(-1, packed.codes.view(values.shape)[..., None].long())[..., 0]
    # Codes are found in float32: half-way points may fall to either side.
    torch.testing.assert_close(chosen, missed.amin(dim=-1), rtol=1e-5, atol=1e-5)


def group_errors(
    weight: torch.Tensor, packed: GroupedWeight, features: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of absolute errors of each group, or of squares that are weighted by feature; float64."""
    missed = packed.dequantize().double() - weight.double()
    missed = missed.abs() if features is None else missed.square() * features
    return missed.view(*packed.scales.shape, -1).sum(dim=-1)


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
def test_no_group_of_hqq_ends_above_its_round_to_nearest_error(group: int, integer: bool) -> None:
    weight = weights(64, 512, seed=3)
    rtn = group_errors(weight, quantize_rtn(weight, group))
    ours = group_errors(weight, quantize_hqq(weight, group, integer))
    # Errors of a group are compared in float32 while it is optimised.
    assert (ours <= rtn * (1 + 1e-5)).all()
    assert integer or (ours < rtn * 0.999).float().mean() > 0.5


WEIGHT = weights(32, 256)


def importance(seed: int = 0) -> torch.Tensor:
    """Squares of inputs, a few of them a hundred times as large."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(256, generator=generator) + 0.1
    values[torch.randperm(256, generator=generator)[:12]] *= 100
    return values


@pytest.mark.parametrize("integer", [False, True], ids=["real", "integer"])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("features", [torch.ones(256), importance()], ids=["equal", "weighted"])
def test_no_fitted_group_ends_above_its_round_to_nearest_error(
    group: int, integer: bool, features: torch.Tensor
) -> None:
    ours = group_errors(WEIGHT, fitted(WEIGHT, group, integer, features), features)
    theirs = group_errors(WEIGHT, quantize_rtn(WEIGHT, group), features)
    # Errors are compared in float32 while a group is fitted.
    assert (ours <= theirs * (1 + 1e-4) + 1e-9).all()
    assert float(ours.sum()) < 0.95 * float(theirs.sum())


def test_weighting_lowers_the_weighted_error() -> None:
    features = importance()
    plain = group_errors(WEIGHT, fitted(WEIGHT), features).sum()
    weighted = group_errors(WEIGHT, fitted(WEIGHT, features=features), features).sum()
    assert float(weighted) < 0.8 * float(plain)


def test_a_group_that_no_input_reaches_counts_equally() -> None:
    features = importance()
    features[:64] = 0
    made = fitted(WEIGHT, features=features)
    plain = fitted(WEIGHT)
    assert torch.equal(made.codes[:, :64], plain.codes[:, :64])
    assert torch.isfinite(made.dequantize()).all()
