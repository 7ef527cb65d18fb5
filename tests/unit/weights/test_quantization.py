"""The quantisers by name, and the group size of a layer."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.weights.quantizers import QUANTIZERS, fitting_group_size


@pytest.mark.parametrize(
    ("in_features", "wanted", "expected"),
    [
        (4096, 128, 128),
        (4096, 64, 64),
        (4096, 32, 32),
        (576, 128, 64),
        (576, 32, 32),
        (1568, 128, 32),
        (32, 128, 32),
    ],
)
def test_group_size_is_halved_until_it_fits(in_features: int, wanted: int, expected: int) -> None:
    assert fitting_group_size(in_features, wanted) == expected


@pytest.mark.parametrize("in_features", [16, 48, 100, 4097])
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
