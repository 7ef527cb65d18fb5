"""The product for many rows, by expanding the weight."""

from __future__ import annotations

import pytest
import torch

from river_vllm.kernels.choice import KernelChooser
from river_vllm.kernels.dequantize import DequantizeKernel
from tests.unit.kernels.support import assert_product, grouped_weight, inputs, spec_of


@pytest.mark.parametrize(("k", "n", "group"), [(32, 48, 32), (576, 192, 64), (384, 80, 128)])
def test_product_is_that_of_the_dequantised_weight(k: int, n: int, group: int) -> None:
    spec = spec_of(k, n, group)
    kernel = DequantizeKernel()
    weight = grouped_weight(spec, kernel.integer_zeros)
    packed = kernel.pack(weight, spec)
    bias = torch.randn(n).to(spec.dtype)
    for rows in (1, 40):
        assert_product(packed, weight, inputs(rows, spec), None)
        assert_product(packed, weight, inputs(rows, spec), bias)
    assert packed.nbytes == n * k + 4 * n * k // group


def test_it_is_taken_by_name_only() -> None:
    spec = spec_of(64, 32, 32)
    made = []

    def make(integer: bool) -> object:
        made.append(integer)
        return grouped_weight(spec, integer)

    chooser = KernelChooser("dequantize")
    chooser.pack(spec, make)
    assert chooser.names == ["dequantize"]
    assert made == [False]
