"""vLLM's own mixed-precision product."""

from __future__ import annotations

import pytest
import torch

from river_vllm.compat import current_platform
from river_vllm.kernels.vllm_mp import (
    VllmMixedPrecisionKernel,
    has_cpu_int4_product,
    pack_int4_into_int32,
)
from tests.unit.kernels.support import assert_product, grouped_weight, inputs, spec_of

pytestmark = [
    pytest.mark.usefixtures("vllm_world"),
    pytest.mark.skipif(
        not current_platform.is_cpu(), reason="weights of these tests are on the CPU"
    ),
    pytest.mark.skipif(
        not has_cpu_int4_product(), reason="this build of vLLM has no 4-bit product for this CPU"
    ),
]
SHAPES = [(64, 32, 32), (160, 64, 32), (576, 192, 64), (384, 96, 128)]
INT8_TOLERANCE = 2**-5
"""One int8 scale per row: half a step of 1/127 of its largest value, about three times its norm's
share, on random codes whose groups differ widely."""
amx = pytest.mark.skipif(
    not torch.cpu._is_amx_tile_supported(), reason="vLLM rounds activations on AMX only"
)


@pytest.fixture
def sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's switch; without it a CPU with AMX takes 8-bit activations."""
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "0")


@pytest.mark.usefixtures("sixteen_bits")
@pytest.mark.parametrize(("k", "n", "group"), SHAPES)
def test_product_is_that_of_the_dequantised_weight(k: int, n: int, group: int) -> None:
    spec = spec_of(k, n, group)
    kernel = VllmMixedPrecisionKernel()
    assert kernel.unsupported(spec) is None
    weight = grouped_weight(spec, kernel.integer_zeros)
    packed = kernel.pack(weight, spec)
    bias = torch.randn(n).to(spec.dtype) * 5
    for rows in (1, 2, 5, 17):
        assert_product(packed, weight, inputs(rows, spec), None)
        assert_product(packed, weight, inputs(rows, spec), bias)


@amx
@pytest.mark.parametrize(("k", "n", "group"), SHAPES)
def test_product_with_rounded_activations(k: int, n: int, group: int) -> None:
    spec = spec_of(k, n, group)
    kernel = VllmMixedPrecisionKernel(int8=True)
    assert kernel.unsupported(spec) is None
    weight = grouped_weight(spec, kernel.integer_zeros)
    packed = kernel.pack(weight, spec)
    bias = torch.randn(n).to(spec.dtype) * 5
    for rows in (1, 5, 17):
        for b in (None, bias):
            assert_product(packed, weight, inputs(rows, spec), b, tolerance=INT8_TOLERANCE)


@amx
def test_rounded_activations_are_taken_only_where_they_are_wanted() -> None:
    spec = spec_of(64, 32, 32)
    assert "8-bit activations" in str(VllmMixedPrecisionKernel().unsupported(spec))


@pytest.mark.usefixtures("sixteen_bits")
def test_activations_that_are_not_rounded_do_not_pass_for_int8() -> None:
    reason = VllmMixedPrecisionKernel(int8=True).unsupported(spec_of(64, 32, 32))
    assert "16-bit activations" in str(reason)


def test_it_asks_for_zero_points_that_an_integer_holds() -> None:
    """A real-valued zero would be truncated while it is packed."""
    assert VllmMixedPrecisionKernel.integer_zeros


@pytest.mark.usefixtures("sixteen_bits")
def test_memory_is_that_of_the_packed_parameters() -> None:
    spec = spec_of(256, 64, 32)
    weight = grouped_weight(spec, integer=True)
    packed = VllmMixedPrecisionKernel().pack(weight, spec)
    # Zero points take half a byte here; kernels may keep a small index besides.
    least = 256 * 64 // 2 + (256 // 32) * 64 * 2 + (256 // 32) * 64 // 2
    assert least <= packed.nbytes <= least + 1024


def test_a_shape_that_no_kernel_takes_gives_its_reason_on_one_line() -> None:
    reason = VllmMixedPrecisionKernel().unsupported(spec_of(64, 20, 32))
    assert reason is not None
    assert "kernel" in reason
    assert "\n" not in reason


@pytest.mark.parametrize("dim", [0, 1])
def test_eight_codes_per_word_low_bits_first(dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (16, 24), generator=generator, dtype=torch.int32)
    packed = pack_int4_into_int32(codes, dim)
    assert packed.dtype == torch.int32
    assert packed.shape == ((2, 24) if dim == 0 else (16, 3))
    words = packed if dim == 1 else packed.t()
    source = codes if dim == 1 else codes.t()
    for line, word_line in zip(source.tolist(), words.tolist(), strict=True):
        for index, word in enumerate(word_line):
            unsigned = word & 0xFFFFFFFF
            nibbles = [(unsigned >> (4 * bit)) & 15 for bit in range(8)]
            assert nibbles == line[8 * index : 8 * index + 8]
