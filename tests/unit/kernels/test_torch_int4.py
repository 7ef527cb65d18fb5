"""torch's CPU int4 product."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from river_vllm.kernels import torch_int4
from river_vllm.kernels.torch_int4 import TorchInt4Kernel
from tests.unit.kernels.support import assert_product, grouped_weight, inputs, spec_of


@pytest.mark.parametrize(
    ("k", "n", "group"),
    [(32, 16, 32), (160, 48, 32), (576, 192, 64), (384, 80, 128), (2048, 32, 128)],
)
def test_product_is_that_of_the_dequantised_weight(k: int, n: int, group: int) -> None:
    spec = spec_of(k, n, group)
    kernel = TorchInt4Kernel()
    assert kernel.unsupported(spec) is None
    weight = grouped_weight(spec, kernel.integer_zeros)
    packed = kernel.pack(weight, spec)
    bias = torch.randn(n).to(spec.dtype) * 5
    for rows in (1, 2, 5, 17):
        assert_product(packed, weight, inputs(rows, spec), None)
        assert_product(packed, weight, inputs(rows, spec), bias)


def test_rows_may_be_a_view_with_gaps() -> None:
    spec = spec_of(64, 32, 32)
    packed = TorchInt4Kernel().pack(grouped_weight(spec, integer=False), spec)
    wide = inputs(6, spec_of(128, 32, 32))
    assert torch.equal(
        packed.apply(wide[::2, ::2], None), packed.apply(wide[::2, ::2].clone(), None)
    )


def test_input_and_bias_are_left_as_they_were() -> None:
    spec = spec_of(64, 32, 32)
    packed = TorchInt4Kernel().pack(grouped_weight(spec, integer=False), spec)
    x, bias = inputs(3, spec), torch.ones(32, dtype=spec.dtype)
    kept = x.clone()
    packed.apply(x, bias)
    assert torch.equal(x, kept)
    assert torch.equal(bias, torch.ones(32, dtype=spec.dtype))


def test_memory_is_half_a_byte_per_weight_and_four_per_group() -> None:
    spec = spec_of(256, 64, 32)
    packed = TorchInt4Kernel().pack(grouped_weight(spec, integer=False), spec)
    assert packed.nbytes == 256 * 64 // 2 + (256 // 32) * 64 * 4


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
