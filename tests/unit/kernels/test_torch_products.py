"""Products without River's library: torch's of 4 bit, and the one for many rows by expanding the
weight."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from river_vllm.kernels import torch_int4
from river_vllm.kernels.base import Int4Kernel
from river_vllm.kernels.choice import KernelChooser
from river_vllm.kernels.dequantize import DequantizeKernel
from river_vllm.kernels.torch_int4 import TorchInt4Kernel
from tests.unit.kernels.support import assert_product, grouped_weight, inputs, spec_of


@pytest.mark.parametrize("kernel", [TorchInt4Kernel(), DequantizeKernel()])
@pytest.mark.parametrize(
    ("k", "n", "group"), [(32, 16, 32), (160, 48, 32), (576, 192, 64), (384, 80, 128)]
)
def test_product_is_that_of_the_dequantised_weight(
    kernel: Int4Kernel, k: int, n: int, group: int
) -> None:
    spec = spec_of(k, n, group)
    assert kernel.unsupported(spec) is None
    weight = grouped_weight(spec, kernel.integer_zeros)
    packed = kernel.pack(weight, spec)
    bias = torch.randn(n).to(spec.dtype) * 5
    for rows in (1, 2, 5, 17, 40):
        assert_product(packed, weight, inputs(rows, spec), None)
        assert_product(packed, weight, inputs(rows, spec), bias)


def test_reasons_name_what_does_not_fit() -> None:
    kernel, spec = TorchInt4Kernel(), spec_of(64, 32, 32)
    assert "float16" in str(kernel.unsupported(replace(spec, dtype=torch.float16)))
    assert "cuda" in str(kernel.unsupported(replace(spec, device=torch.device("cuda"))))
    assert "24" in str(kernel.unsupported(replace(spec, out_features=24)))


@pytest.mark.parametrize("missing", torch_int4._OPERATORS)
def test_a_build_without_its_operators_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch for Arm may be: the operator is there or it is not, whatever the CPU."""
    there = [name for name in torch_int4._OPERATORS if name != missing]
    operators = SimpleNamespace(aten=SimpleNamespace(**dict.fromkeys(there)))
    monkeypatch.setattr(torch_int4, "torch", SimpleNamespace(ops=operators))
    reason = TorchInt4Kernel().unsupported(spec_of(64, 32, 32))
    assert reason == "this build of torch has no 4-bit product for CPUs"


def test_expanding_is_taken_by_name_only() -> None:
    spec = spec_of(64, 32, 32)
    made = []

    def make(integer: bool) -> object:
        made.append(integer)
        return grouped_weight(spec, integer)

    chooser = KernelChooser("dequantize")
    chooser.pack(spec, make)
    assert chooser.names == ["dequantize"]
    assert made == [False]
