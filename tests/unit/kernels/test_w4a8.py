"""The native kernel against the same product in float32 with the same rounded activations."""

from __future__ import annotations

import pytest
import torch

from river_vllm.kernels.base import LinearSpec
from river_vllm.kernels.native import build
from river_vllm.kernels.w4a8 import NativeW4A8Kernel
from river_vllm.quantization import QUANTIZERS

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    build.unsupported() is not None, reason=f"native kernel: {build.unsupported()}"
)


def _spec(in_features: int, out_features: int, group: int) -> LinearSpec:
    return LinearSpec(in_features, out_features, group, torch.bfloat16, CPU)


def _rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """Symmetric int8 with one scale per group of a row."""
    parts = x.float().view(x.shape[0], -1, group)
    scales = parts.abs().amax(dim=-1, keepdim=True) / 127
    codes = (parts / scales.clamp(min=1e-30)).round()
    return (codes * scales).view(x.shape)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize(
    ("in_features", "out_features", "group"),
    [(128, 16, 128), (576, 1152, 64), (96, 48, 32), (256, 80, 128)],
)
def test_product(rows: int, in_features: int, out_features: int, group: int) -> None:
    """bfloat16 output keeps 8 bits, scales and zeros are bfloat16: 2**-7 of the largest value."""
    torch.manual_seed(rows)
    weight = torch.randn(out_features, in_features) * 0.05
    grouped = QUANTIZERS["hqq"](weight, group)
    packed = NativeW4A8Kernel().pack(grouped, _spec(in_features, out_features, group))
    x = torch.randn(rows, in_features).bfloat16()
    bias = torch.randn(out_features).bfloat16()
    zeros = grouped.zeros.bfloat16().float().repeat_interleave(group, dim=1)
    scales = grouped.scales.repeat_interleave(group, dim=1)
    expected = _rounded(x, group) @ ((grouped.codes.float() - zeros) * scales).T
    tolerance = float(expected.abs().max()) * 2**-7
    torch.testing.assert_close(packed.apply(x, None).float(), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(
        packed.apply(x, bias).float(), expected + bias.float(), atol=2 * tolerance, rtol=0
    )


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """To the bit: a request's tokens are the same alone and in a batch."""
    torch.manual_seed(0)
    grouped = QUANTIZERS["rtn"](torch.randn(64, 256), 64)
    packed = NativeW4A8Kernel().pack(grouped, _spec(256, 64, 64))
    x = torch.randn(9, 256).bfloat16()
    together = packed.apply(x, None)
    for row in range(9):
        assert torch.equal(packed.apply(x[row : row + 1], None)[0], together[row])


def test_a_zero_row_is_zero() -> None:
    packed = NativeW4A8Kernel().pack(QUANTIZERS["rtn"](torch.randn(32, 64), 32), _spec(64, 32, 32))
    out = packed.apply(torch.zeros(1, 64).bfloat16(), None)
    assert torch.equal(out, torch.zeros(1, 32).bfloat16())


def test_memory_is_half_a_byte_per_weight_and_its_groups() -> None:
    packed = NativeW4A8Kernel().pack(
        QUANTIZERS["rtn"](torch.randn(64, 256), 64), _spec(256, 64, 64)
    )
    assert packed.nbytes == 64 * 256 // 2 + 2 * 2 * 64 * 4


def test_other_types_are_refused() -> None:
    spec = LinearSpec(64, 32, 32, torch.float16, CPU)
    assert "bfloat16" in str(NativeW4A8Kernel().unsupported(spec))
    assert "multiple of 16" in str(NativeW4A8Kernel().unsupported(_spec(64, 24, 32)))


def test_one_build_for_one_source() -> None:
    assert build.library() is build.library()
