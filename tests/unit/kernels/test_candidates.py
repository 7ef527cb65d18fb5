"""Some outputs of a product, by every back end and by torch."""

from __future__ import annotations

import pytest
import torch

from river_vllm.kernels.native.backend import Backend
from river_vllm.model.head import some_outputs
from tests.unit.kernels.support import every_backend, scalar_backend


def operands(rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * width)
    x = torch.randn(rows, width, generator=generator).bfloat16()
    weight = torch.randn(500, width, generator=generator).bfloat16()
    return x, weight, torch.randint(500, (rows, 33), generator=generator)


@every_backend
@pytest.mark.parametrize("rows", [1, 2, 7, 32])
@pytest.mark.parametrize("width", [64, 576, 1001])
def test_they_are_the_products_own(backend: Backend, rows: int, width: int) -> None:
    x, weight, chosen = operands(rows, width)
    expected = (x.double() @ weight.double().T).gather(1, chosen)
    found = backend.candidates(x, weight, chosen)
    for values in (found, some_outputs(x, weight, chosen)):
        assert (values.dtype, values.shape) == (torch.bfloat16, chosen.shape)
        # One rounding to bf16 of a sum in float32.
        torch.testing.assert_close(values.double(), expected, rtol=2**-8, atol=2**-8)
    assert torch.equal(found, scalar_backend().candidates(x, weight, chosen))


@every_backend
def test_the_weight_may_be_part_of_another(backend: Backend) -> None:
    x, weight, chosen = operands(3, 128)
    candidates = backend.candidates
    wide = torch.cat([weight, torch.full_like(weight, torch.nan)], dim=1)
    expected = candidates(x, weight, chosen)
    assert torch.equal(candidates(x, wide[:, :128], chosen), expected)
    assert torch.equal(candidates(x, weight.T.contiguous().T, chosen), expected)


@every_backend
def test_what_is_not_finite_stays_in_its_row(backend: Backend) -> None:
    x, weight, chosen = operands(3, 100)
    candidates = backend.candidates
    expected = candidates(x, weight, chosen)
    x[1, 99] = torch.nan
    found = candidates(x, weight, chosen)
    assert found[1].isnan().all()
    assert torch.equal(found[::2], expected[::2])
