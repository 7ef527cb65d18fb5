"""The native products of every back end that this machine runs against the same in float32."""

from __future__ import annotations

import gc
from functools import partial

import pytest
import torch

from river_vllm.kernels.base import LinearSpec
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.kernels.native import kernel as module
from river_vllm.kernels.native.kernel import CACHE_LINE, Backend, HugePages, NativeKernel
from river_vllm.kernels.native.library import backend as best
from river_vllm.weights.quantizers import QUANTIZERS
from tests.unit.kernels.support import (
    TOLERANCE,
    assert_product,
    every_backend,
    grouped_weight,
    inputs,
    scalar_backend,
    spec_of,
)

SHAPES = [(128, 16, 128), (576, 1152, 64), (96, 48, 32), (256, 80, 128)]
"""One block alone, pairs only, and pairs with a last odd block."""
ROWS = [1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 70]
"""Around the 4 and 8 rows of the vector paths and the 16 and 32 of the tiles."""
both_products = pytest.mark.parametrize("int8", [True, False], ids=["int8", "bf16"])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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


@every_backend
@both_products
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(backend: Backend, int8: bool, shape: tuple[int, int, int]) -> None:
    spec = spec_of(*shape)
    weight = _stored(grouped_weight(spec, integer=False))
    packed = NativeKernel(int8, lambda: backend).pack(weight, spec)
    # Half an int8 step is rounded either way where the scale's own last bit decides.
    tolerance = 2 * TOLERANCE if int8 else TOLERANCE
    for rows in ROWS:
        x = inputs(rows, spec)
        reference = _rounded(x, spec.group_size) if int8 else x
        for bias in (None, torch.randn(spec.out_features).bfloat16()):
            assert_product(packed, weight, x, bias, reference, tolerance)


@every_backend
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_gives_the_same_bits_on_every_back_end(
    backend: Backend, shape: tuple[int, int, int]
) -> None:
    """Inputs of any size, some that round to nothing, and some that are not finite."""
    spec = spec_of(*shape)
    weight = grouped_weight(spec, integer=False)
    found = NativeKernel(True, lambda: backend).pack(weight, spec)
    expected = NativeKernel(True, scalar_backend).pack(weight, spec)
    bias = torch.randn(spec.out_features).bfloat16()
    for rows in ROWS:
        x = inputs(rows, spec) * torch.logspace(-30, 30, rows).view(-1, 1).bfloat16()
        x[0, :3] = torch.tensor([torch.nan, torch.inf, 0.0])[torch.arange(3) % (rows % 3 + 1)]
        for b in (None, bias):
            torch.testing.assert_close(
                found.apply(x, b), expected.apply(x, b), rtol=0, atol=0, equal_nan=True
            )


@every_backend
@both_products
def test_a_row_does_not_depend_on_its_neighbours(backend: Backend, int8: bool) -> None:
    """To the bit: a request's tokens are the same alone and in a batch."""
    spec = spec_of(256, 80, 64)
    packed = NativeKernel(int8, lambda: backend).pack(grouped_weight(spec, integer=False), spec)
    x = inputs(70, spec)
    together = packed.apply(x, None)
    wide = torch.stack([x, x + 1], dim=2).view(70, -1)
    assert torch.equal(packed.apply(wide[:, ::2], None), together), "rows may be a view with gaps"
    for rows in ROWS:
        for first in {0, min(3, 70 - rows), 70 - rows}:
            span = slice(first, first + rows)
            assert torch.equal(packed.apply(x[span], None), together[span])


@every_backend
@both_products
def test_a_product_of_some_outputs_has_the_bits_of_the_whole(backend: Backend, int8: bool) -> None:
    """What an output is beside does not matter either: a draft's logits are those of the full LM
    head."""
    spec, some = spec_of(256, 1024, 128), spec_of(256, 192, 128)
    weight = QUANTIZERS["hqq"](torch.randn(1024, 256, generator=seeded()).bfloat16(), 128)
    chosen = torch.randperm(1024, generator=seeded())[:192].sort().values
    part = GroupedWeight(weight.codes[chosen], weight.scales[chosen], weight.zeros[chosen])
    kernel = NativeKernel(int8, lambda: backend)
    whole, listed = kernel.pack(weight, spec), kernel.pack(part, some)
    for rows in ROWS:
        x = inputs(rows, spec)
        assert torch.equal(listed.apply(x, None), whole.apply(x, None)[:, chosen])
        assert torch.equal(listed.draft(x, None), whole.draft(x, None)[:, chosen])


@every_backend
@both_products
@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
@pytest.mark.parametrize("rows", [3, 40])
def test_what_is_not_finite_stays_in_its_row(
    backend: Backend, int8: bool, bad: float, rows: int
) -> None:
    spec = spec_of(256, 48, 64)
    packed = NativeKernel(int8, lambda: backend).pack(grouped_weight(spec, integer=False), spec)
    x = inputs(rows, spec)
    expected = packed.apply(x, None)
    x[1, 70] = bad
    out = packed.apply(x, None)
    assert not out[1].isfinite().any()
    assert bad == bad or out[1].isnan().all()
    others = torch.arange(rows) != 1
    assert torch.equal(out[others], expected[others])


@every_backend
@both_products
def test_a_zero_row_is_zero(backend: Backend, int8: bool) -> None:
    rows = 5
    spec = spec_of(64, 48, 32)
    packed = NativeKernel(int8, lambda: backend).pack(grouped_weight(spec, integer=False), spec)
    x = inputs(rows, spec)
    x[-1] = 0
    out = packed.apply(x, None)
    assert torch.equal(out[-1], torch.zeros(48).bfloat16())
    bias = torch.randn(48).bfloat16()
    assert torch.equal(packed.apply(x, bias)[-1], bias)


@both_products
def test_one_thread_or_two_give_the_same_bits(int8: bool) -> None:
    spec = spec_of(2048, 80, 128)  # activations are brought into form by all threads too
    kernel = partial(NativeKernel, int8, best)
    if kernel().unsupported(spec):
        pytest.skip("the kernel library is not built")
    packed = kernel().pack(grouped_weight(spec, integer=False), spec)
    x, threads, outputs = inputs(40, spec), torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            outputs.append(packed.apply(x, None))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*outputs)


@both_products
def test_other_types_and_shapes_are_refused(int8: bool) -> None:
    kernel = NativeKernel(int8, best)
    half = LinearSpec(64, 32, 32, torch.float16, torch.device("cpu"))
    assert "bfloat16" in str(kernel.unsupported(half))
    assert "multiple of 16" in str(kernel.unsupported(spec_of(64, 24, 32)))


def test_values_and_shapes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 1 << 16)
    held = HugePages()
    # The last two do not fit into what is left of a chunk, and into a chunk at all.
    sizes = [1, 63, 64, 65, 30_000, 50_000, 3 << 20]
    values = [torch.randint(0, 255, (size,), dtype=torch.uint8) for size in sizes]
    kept = [held.hold(value) for value in values]
    for found, expected in zip(kept, values, strict=True):
        assert torch.equal(found, expected)
        assert found.data_ptr() % CACHE_LINE == 0
    kept[1].fill_(7)
    assert torch.equal(kept[0], values[0])
    assert torch.equal(kept[2], values[2])


def test_a_tensor_outlives_what_handed_it_out() -> None:
    held = HugePages()
    values = torch.arange(1000)
    found = held.hold(values)
    del held
    gc.collect()
    assert torch.equal(found, values)
