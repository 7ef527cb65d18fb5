"""Memory for packed weights: values kept, on cache lines, apart from each other."""

from __future__ import annotations

import gc

import pytest
import torch

from river_vllm.kernels.native import pages
from river_vllm.kernels.native.pages import CACHE_LINE, HugePages


def test_values_and_shapes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "CHUNK", 1 << 16)
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
