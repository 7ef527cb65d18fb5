"""Some outputs of a product, by the native kernel and by torch."""

from __future__ import annotations

import pytest
import torch

from river_vllm.kernels.native import build
from river_vllm.kernels.native.chosen import NativeChosen
from river_vllm.layers.river_head import chosen_outputs

pytestmark = pytest.mark.skipif(build.cannot_build() is not None, reason="no compiler")


def operands(rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * width)
    x = torch.randn(rows, width, generator=generator).bfloat16()
    weight = torch.randn(500, width, generator=generator).bfloat16()
    return x, weight, torch.randint(500, (rows, 33), generator=generator)


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
@pytest.mark.parametrize("width", [64, 576, 1001])
def test_they_are_the_products_own(rows: int, width: int) -> None:
    x, weight, chosen = operands(rows, width)
    expected = (x.double() @ weight.double().T).gather(1, chosen)
    for function in (NativeChosen(), chosen_outputs):
        found = function(x, weight, chosen)
        assert (found.dtype, found.shape) == (torch.bfloat16, chosen.shape)
        # One rounding to bf16 of a sum in float32.
        torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2**-8)


def test_the_weight_may_be_part_of_another() -> None:
    x, weight, chosen = operands(3, 128)
    wide = torch.cat([weight, torch.full_like(weight, torch.nan)], dim=1)
    expected = NativeChosen()(x, weight, chosen)
    assert torch.equal(NativeChosen()(x, wide[:, :128], chosen), expected)
    assert torch.equal(NativeChosen()(x, weight.T.contiguous().T, chosen), expected)
