"""A bf16 product with float32 sums, by every back end and by torch."""

from __future__ import annotations

import pytest
import torch

from river_vllm.kernels.native.backend import Backend
from tests.unit.kernels.support import every_backend


def operands(rows: int, width: int, outputs: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows * width)
    shapes = ((rows, width), (outputs, width), (outputs,))
    x, weight, bias = (torch.randn(*shape, generator=generator).bfloat16() for shape in shapes)
    return x, weight, bias


@every_backend
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9, 300])
@pytest.mark.parametrize(("width", "outputs"), [(64, 32), (203, 17), (1001, 1)])
def test_it_is_the_product(backend: Backend, rows: int, width: int, outputs: int) -> None:
    x, weight, bias = operands(rows, width, outputs)
    for shift in (None, bias):
        found = backend.dense(x, weight, shift)
        expected = x.double() @ weight.double().T + (0 if shift is None else shift.double())
        assert (found.dtype, found.shape) == (torch.bfloat16, (rows, outputs))
        # One rounding to bf16 of a sum in float32.
        torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2**-8)


@every_backend
def test_shapes_and_layouts_of_torchs_own(backend: Backend) -> None:
    """A batch dimension, a weight that lies transposed."""
    x, weight, bias = operands(6, 64, 32)
    dense = backend.dense
    expected = dense(x, weight, bias)
    found = dense(x.view(1, 6, 64), weight.T.contiguous().T, bias)
    assert torch.equal(found, expected.view(1, 6, 32))


@every_backend
def test_a_rows_result_does_not_depend_on_its_place_among_full_groups(backend: Backend) -> None:
    x, weight, _ = operands(16, 128, 32)
    dense = backend.dense
    once = dense(x, weight, None)
    again = dense(x.flip(0), weight, None).flip(0)
    assert torch.equal(once, again)
    x[3, 7] = torch.nan
    spoilt = dense(x, weight, None)
    assert spoilt[3].isnan().all()
    assert torch.equal(spoilt[4:], once[4:])
