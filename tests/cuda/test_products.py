"""vLLM's 4-bit products for GPUs: what River packs, on stand-ins for the operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.model_executor.kernels.linear import MarlinLinearKernel
from vllm.model_executor.kernels.linear.mixed_precision.machete import MacheteLinearKernel

from river_vllm.kernels.others import VllmMixedPrecisionKernel
from tests.cuda.support import pretend_gpu
from tests.unit.kernels.support import assert_product, grouped_weight, inputs, spec_of

pytestmark = pytest.mark.usefixtures("vllm_world")


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(
    ("k", "n"), [(256, 128), (384, 192), pytest.param(640, 72, id="padded"), (128, 256)]
)
@pytest.mark.parametrize("capability", [80, 89, 90])
def test_the_product_is_that_of_the_dequantised_weight(
    capability: int, k: int, n: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, capability)
    kernel, spec = VllmMixedPrecisionKernel(), spec_of(k, n, group)
    assert kernel.unsupported(spec) is None
    weight = grouped_weight(spec, integer=True)
    packed: Any = kernel.pack(weight, spec)
    hopper = capability == 90 and group > 32 and (k % 64, n % 128) == (0, 0)
    assert type(packed._scheme.kernel) is (MacheteLinearKernel if hopper else MarlinLinearKernel)
    bias = torch.randn(n).bfloat16() * 5
    for rows in (1, 5):
        assert_product(packed, weight, inputs(rows, spec), None)
        assert_product(packed, weight, inputs(rows, spec), bias)


def test_a_shape_that_no_product_takes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, 80)
    assert "multiple of 8, got 65" in str(
        VllmMixedPrecisionKernel().unsupported(spec_of(64, 65, 32))
    )
