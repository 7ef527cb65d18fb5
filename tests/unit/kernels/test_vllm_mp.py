"""vLLM's own mixed-precision product."""

from __future__ import annotations

import pytest
import torch

from river_vllm.compat import current_platform
from river_vllm.kernels.vllm_mp import VllmMixedPrecisionKernel
from tests.unit.kernels.support import assert_product, grouped_weight, inputs, spec_of

pytestmark = [
    pytest.mark.usefixtures("vllm_world"),
    pytest.mark.skipif(
        not current_platform.is_cpu(), reason="weights of these tests are on the CPU"
    ),
]


@pytest.mark.parametrize(
    ("k", "n", "group"), [(64, 32, 32), (160, 64, 32), (576, 192, 64), (384, 96, 128)]
)
def test_product_is_that_of_the_dequantised_weight(k: int, n: int, group: int) -> None:
    spec = spec_of(k, n, group)
    kernel = VllmMixedPrecisionKernel()
    assert kernel.unsupported(spec) is None
    weight = grouped_weight(spec, kernel.whole_zeros)
    packed = kernel.pack(weight, spec)
    bias = torch.randn(n).to(spec.dtype) * 5
    for rows in (1, 2, 5, 17):
        assert_product(packed, weight, inputs(rows, spec), None)
        assert_product(packed, weight, inputs(rows, spec), bias)


def test_it_asks_for_zero_points_that_an_integer_holds() -> None:
    """A real-valued zero would be truncated while it is packed."""
    assert VllmMixedPrecisionKernel.whole_zeros


def test_memory_is_that_of_the_packed_parameters() -> None:
    spec = spec_of(256, 64, 32)
    weight = grouped_weight(spec, whole=True)
    packed = VllmMixedPrecisionKernel().pack(weight, spec)
    # Zero points take half a byte here; kernels may keep a small index besides.
    least = 256 * 64 // 2 + (256 // 32) * 64 * 2 + (256 // 32) * 64 // 2
    assert least <= packed.nbytes <= least + 1024


def test_a_shape_that_no_kernel_takes_gives_its_reason_on_one_line() -> None:
    reason = VllmMixedPrecisionKernel().unsupported(spec_of(64, 20, 32))
    assert reason is not None
    assert "kernel" in reason
    assert "\n" not in reason
