"""Products in bf16 with float32 sums, by every back end: all outputs, and some of them."""

from __future__ import annotations

import pytest
import torch

from river_vllm.kernels.native.kernel import Backend
from river_vllm.model.head import some_outputs
from tests.unit.kernels.support import every_backend, scalar_backend

pytestmark = every_backend


def operands(rows: int, width: int, outputs: int = 500) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows * width)
    shapes = ((rows, width), (outputs, width), (outputs,))
    x, weight, bias = (torch.randn(*shape, generator=generator).bfloat16() for shape in shapes)
    return x, weight, bias, torch.randint(outputs, (rows, 33), generator=generator)


def assert_rounded(found: torch.Tensor, expected: torch.Tensor) -> None:
    """One rounding to bf16 of a sum in float32."""
    assert (found.dtype, found.shape) == (torch.bfloat16, expected.shape)
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9, 300])
@pytest.mark.parametrize(("width", "outputs"), [(64, 32), (203, 17), (1001, 1)])
def test_it_is_the_product(backend: Backend, rows: int, width: int, outputs: int) -> None:
    x, weight, bias, _ = operands(rows, width, outputs)
    expected = x.double() @ weight.double().T
    assert_rounded(backend.dense(x, weight, None), expected)
    assert_rounded(backend.dense(x, weight, bias), expected + bias.double())


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
@pytest.mark.parametrize("width", [64, 576, 1001])
def test_some_outputs_are_the_products_own(backend: Backend, rows: int, width: int) -> None:
    x, weight, _, chosen = operands(rows, width)
    expected = (x.double() @ weight.double().T).gather(1, chosen)
    found = backend.candidates(x, weight, chosen)
    for values in (found, some_outputs(x, weight, chosen)):
        assert_rounded(values, expected)
    assert torch.equal(found, scalar_backend().candidates(x, weight, chosen))


def test_the_weight_may_be_part_of_another_or_lie_transposed(backend: Backend) -> None:
    x, weight, bias, chosen = operands(6, 64)
    part = torch.cat([weight, torch.full_like(weight, torch.nan)], dim=1)[:, :64]
    some, dense = backend.candidates(x, weight, chosen), backend.dense(x, weight, bias)
    for other in (part, weight.T.contiguous().T):
        assert torch.equal(backend.candidates(x, other, chosen), some)
        assert torch.equal(backend.dense(x.view(1, 6, 64), other, bias), dense.view(1, 6, -1))


def test_what_is_not_finite_stays_in_its_row(backend: Backend) -> None:
    x, weight, _, chosen = operands(16, 100)
    some, dense = backend.candidates(x, weight, chosen), backend.dense(x, weight, None)
    x[3, 7] = torch.nan
    for found, before in (
        (backend.candidates(x, weight, chosen), some),
        (backend.dense(x, weight, None), dense),
    ):
        assert found[3].isnan().all()
        assert torch.equal(found[4:], before[4:])


def test_a_rows_result_does_not_depend_on_its_place_among_full_groups(backend: Backend) -> None:
    x, weight, _, _ = operands(16, 128)
    once = backend.dense(x, weight, None)
    assert torch.equal(backend.dense(x.flip(0), weight, None).flip(0), once)
