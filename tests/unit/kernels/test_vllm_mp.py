"""vLLM's own mixed-precision product."""

from __future__ import annotations

import pytest
import torch

from river_vllm.compat import current_platform
from river_vllm.kernels.vllm_mp import (
    VllmMixedPrecisionKernel,
    has_cpu_int4_product,
)
from tests.unit.kernels.support import TOLERANCE, assert_product, grouped_weight, inputs, spec_of

pytestmark = [
    pytest.mark.usefixtures("vllm_world"),
    pytest.mark.skipif(
        not current_platform.is_cpu(), reason="weights of these tests are on the CPU"
    ),
    pytest.mark.skipif(
        not has_cpu_int4_product(), reason="this build of vLLM has no 4-bit product for this CPU"
    ),
]
INT8_TOLERANCE = 2**-5
"""One int8 scale per row: half a step of 1/127 of its largest value, about three times its norm's
share, on random codes whose groups differ widely."""
amx = pytest.mark.skipif(
    not torch.cpu._is_amx_tile_supported(), reason="vLLM rounds activations on AMX only"
)


SWITCH = "VLLM_CPU_INT4_W4A8"
"""vLLM's; without it a CPU with AMX takes 8-bit activations."""


@pytest.mark.parametrize("int8", [False, pytest.param(True, marks=amx)])
@pytest.mark.parametrize("shape", [(64, 32, 32), (160, 64, 32), (576, 192, 64), (384, 96, 128)])
def test_product_is_that_of_the_dequantised_weight(
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


@amx
def test_rounded_activations_are_taken_only_where_they_are_wanted() -> None:
    spec = spec_of(64, 32, 32)
    assert "8-bit activations" in str(VllmMixedPrecisionKernel().unsupported(spec))


def test_activations_that_are_not_rounded_do_not_pass_for_int8(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SWITCH, "0")
    reason = VllmMixedPrecisionKernel(int8=True).unsupported(spec_of(64, 32, 32))
    assert "16-bit activations" in str(reason)
