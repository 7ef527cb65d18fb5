"""The native kernels against the same products in float32."""

from __future__ import annotations

import pytest
import torch

from river_vllm.kernels.base import LinearSpec
from river_vllm.kernels.native import build
from river_vllm.kernels.native.kernel import NativeKernel
from river_vllm.quantization import QUANTIZERS, GroupedWeight
from tests.unit.kernels.support import TOLERANCE, assert_product, grouped_weight, inputs, spec_of


def _needs(product: str) -> pytest.MarkDecorator:
    reason = build.unsupported(product)
    return pytest.mark.skipif(reason is not None, reason=f"{product}: {reason}")


INT8 = pytest.param(True, marks=_needs("river_int8"), id="int8")
BF16 = pytest.param(False, marks=_needs("river_bf16"), id="bf16")
SHAPES = [(128, 16, 128), (576, 1152, 64), (96, 48, 32), (256, 80, 128)]
ROWS = [1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 70]
"""Around the 4 rows of the vector path and the 16 and 32 of the tiles."""


def _rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """Symmetric int8 with one scale per group of a row."""
    parts = x.float().view(x.shape[0], -1, group)
    scales = parts.abs().amax(dim=-1, keepdim=True) / 127
    codes = (parts / scales.clamp(min=1e-30)).round()
    return (codes * scales).view(x.shape)


def _stored(weight: GroupedWeight) -> GroupedWeight:
    """Scales and zeros as the kernels keep them."""
    return GroupedWeight(
        weight.codes, weight.scales.bfloat16().float(), weight.zeros.bfloat16().float()
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("int8", [INT8, BF16])
def test_product(int8: bool, rows: int, shape: tuple[int, int, int]) -> None:
    spec = spec_of(*shape)
    weight = _stored(grouped_weight(spec, whole=False))
    packed = NativeKernel(int8).pack(weight, spec)
    x = inputs(rows, spec)
    reference = _rounded(x, spec.group_size) if int8 else x
    # Half an int8 step is rounded either way where the scale's own last bit decides.
    tolerance = 2 * TOLERANCE if int8 else TOLERANCE
    for bias in (None, torch.randn(spec.out_features).bfloat16()):
        assert_product(packed, weight, x, bias, reference, tolerance)


@pytest.mark.parametrize("int8", [INT8, BF16])
def test_a_row_does_not_depend_on_its_neighbours(int8: bool) -> None:
    """To the bit: a request's tokens are the same alone and in a batch."""
    spec = spec_of(256, 80, 64)
    packed = NativeKernel(int8).pack(grouped_weight(spec, whole=False), spec)
    x = inputs(70, spec)
    together = packed.apply(x, None)
    for rows in ROWS:
        assert torch.equal(packed.apply(x[3 : 3 + rows], None), together[3 : 3 + rows])


@pytest.mark.parametrize("int8", [INT8, BF16])
def test_a_zero_row_is_zero(int8: bool) -> None:
    spec = spec_of(64, 32, 32)
    packed = NativeKernel(int8).pack(QUANTIZERS["rtn"](torch.randn(32, 64), 32), spec)
    out = packed.apply(torch.zeros(1, 64).bfloat16(), None)
    assert torch.equal(out, torch.zeros(1, 32).bfloat16())


@pytest.mark.parametrize("int8", [INT8, BF16])
def test_memory_is_half_a_byte_per_weight_and_its_groups(int8: bool) -> None:
    packed = NativeKernel(int8).pack(
        QUANTIZERS["rtn"](torch.randn(64, 256), 64), spec_of(256, 64, 64)
    )
    assert packed.nbytes == 64 * 256 // 2 + 2 * 2 * 64 * 4


@pytest.mark.parametrize("int8", [INT8, BF16])
def test_other_types_are_refused(int8: bool) -> None:
    kernel = NativeKernel(int8)
    half = LinearSpec(64, 32, 32, torch.float16, torch.device("cpu"))
    assert "bfloat16" in str(kernel.unsupported(half))
    assert "multiple of 16" in str(kernel.unsupported(spec_of(64, 24, 32)))


@_needs("river_int8")
def test_one_build_for_one_source() -> None:
    assert build.library() is build.library()
