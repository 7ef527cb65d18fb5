"""What holds of every quantiser, and the group size of a layer."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch

from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights import fit, hqq
from river_vllm.weights.fit import quantize_fit
from river_vllm.weights.quantizers import QUANTIZERS, fitting_group_size
from tests.unit.weights.test_cache import same
from tests.unit.weights.test_rtn import weights


@pytest.mark.parametrize(
    ("in_features", "wanted", "expected"),
    [
        (4096, 128, 128),
        (576, 128, 64),
        (1568, 128, 32),
        (32, 128, 32),
    ],
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


def fitted(weight: torch.Tensor, group_size: int, integer_zeros: bool = False) -> GroupedWeight:
    """By least squares, with every input feature counting the same."""
    return quantize_fit(weight, group_size, integer_zeros, torch.ones(weight.shape[1]))


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


@pytest.mark.parametrize(("module", "name"), [(hqq, "hqq"), (fit, "fit")])
@pytest.mark.parametrize("block", [1, 700, 1 << 18])
def test_the_block_size_changes_nothing(
    module: Any, name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ALL[name](weights(9, 256), 64)
    monkeypatch.setattr(module, "BLOCK", block)
    assert same(ALL[name](weights(9, 256), 64), expected)
