"""Products without River's library: torch's and vLLM's of 4 bit, and the one that expands the
weight."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from river_vllm.compat import current_platform
from river_vllm.kernels import others
from river_vllm.kernels.base import Int4Kernel
from river_vllm.kernels.choice import KernelChooser
from river_vllm.kernels.others import (
    DequantizeKernel,
    TorchInt4Kernel,
    VllmMixedPrecisionKernel,
    has_cpu_int4_product,
)
from tests.unit.kernels.support import TOLERANCE, assert_product, grouped_weight, inputs, spec_of


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


@pytest.mark.parametrize("missing", others._OPERATORS)
def test_a_build_without_its_operators_is_named(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch for Arm may be: the operator is there or it is not, whatever the CPU."""
    there = [name for name in others._OPERATORS if name != missing]
    operators = SimpleNamespace(aten=SimpleNamespace(**dict.fromkeys(there)))
    monkeypatch.setattr(others, "torch", SimpleNamespace(ops=operators))
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


of_vllm = pytest.mark.skipif(
    not (current_platform.is_cpu() and has_cpu_int4_product()),
    reason="this build of vLLM has no 4-bit product for this CPU",
)
INT8_TOLERANCE = 2**-5
"""One int8 scale per row: half a step of 1/127 of its largest value, about three times its norm's
share, on random codes whose groups differ widely."""
amx = pytest.mark.skipif(
    not torch.cpu._is_amx_tile_supported(), reason="vLLM rounds activations on AMX only"
)


SWITCH = "VLLM_CPU_INT4_W4A8"
"""vLLM's; without it a CPU with AMX takes 8-bit activations."""


@of_vllm
@pytest.mark.usefixtures("vllm_world")
@pytest.mark.parametrize("int8", [False, pytest.param(True, marks=amx)])
@pytest.mark.parametrize("shape", [(64, 32, 32), (160, 64, 32), (576, 192, 64), (384, 96, 128)])
def test_vllms_product_is_that_of_the_dequantised_weight(
    int8: bool, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not int8:
        monkeypatch.setenv(SWITCH, "0")
    spec = spec_of(*shape)
    kernel = VllmMixedPrecisionKernel(int8)
    assert kernel.unsupported(spec) is None
    weight = grouped_weight(spec, kernel.integer_zeros)
    packed = kernel.pack(weight, spec)
    tolerance = INT8_TOLERANCE if int8 else TOLERANCE
    for rows in (1, 2, 5, 17):
        for bias in (None, torch.randn(shape[1]).to(spec.dtype) * 5):
            assert_product(packed, weight, inputs(rows, spec), bias, tolerance=tolerance)


@of_vllm
@amx
@pytest.mark.usefixtures("vllm_world")
def test_rounded_activations_are_taken_only_where_they_are_wanted() -> None:
    spec = spec_of(64, 32, 32)
    assert "8-bit activations" in str(VllmMixedPrecisionKernel().unsupported(spec))


@of_vllm
@pytest.mark.usefixtures("vllm_world")
def test_activations_that_are_not_rounded_do_not_pass_for_int8(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SWITCH, "0")
    reason = VllmMixedPrecisionKernel(int8=True).unsupported(spec_of(64, 32, 32))
    assert "16-bit activations" in str(reason)
