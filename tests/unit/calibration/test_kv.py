"""K and V as they come back out of vLLM's paged blocks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from river_vllm.calibration import kv
from river_vllm.compat import current_platform

pytestmark = pytest.mark.skipif(
    not current_platform.is_cpu(), reason="the layout is that of vLLM's CPU attention"
)

BLOCKS, HEADS, LAYERS = 4, 2, 2


def worker(size: int, head_size: int) -> Any:
    """Plays a vLLM worker with empty caches of two layers."""
    isa = _get_attn_isa(torch.bfloat16, size, head_size)
    layers = {
        f"layer.{index}": SimpleNamespace(
            kv_cache=torch.zeros(BLOCKS, HEADS, size, 2 * head_size, dtype=torch.bfloat16), isa=isa
        )
        for index in range(LAYERS)
    }
    compilation = SimpleNamespace(static_forward_context=layers)
    return SimpleNamespace(vllm_config=SimpleNamespace(compilation_config=compilation))


def write(layer: Any, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    """As vLLM's attention backend writes a step's K and V."""
    blocks, heads, size, _ = layer.kv_cache.shape
    key_cache, value_cache = layer.kv_cache.view(blocks, heads, size * 2, -1).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(keys, values, key_cache, value_cache, slots, layer.isa)


@pytest.mark.parametrize(("size", "head_size"), [(16, 64), (32, 64), (16, 80), (128, 128)])
def test_what_vllm_writes_is_read_slot_by_slot(size: int, head_size: int) -> None:
    made = worker(size, head_size)
    generator = torch.Generator().manual_seed(0)
    shape = (LAYERS, 2, 2 * size, HEADS, head_size)
    written = torch.randn(shape, generator=generator).bfloat16()
    # Blocks 3 and 1, in this order; block 2 stays empty.
    slots = torch.cat([torch.arange(3 * size, 4 * size), torch.arange(size, 2 * size)])
    for layer, (keys, values) in zip(
        made.vllm_config.compilation_config.static_forward_context.values(), written, strict=True
    ):
        write(layer, slots, keys, values)
    keys, values = kv.read(made, [3, 1])
    assert torch.equal(keys, written[:, 0].float())
    assert torch.equal(values, written[:, 1].float())
    assert not kv.read(made, [2])[0].any()


def test_single_slots_of_several_blocks_in_any_order() -> None:
    """Each layer's own: those with a window and those without have different blocks."""
    made = worker(32, 64)
    slots = {"layer.0": torch.tensor([97, 3, 40, 98]), "layer.1": torch.tensor([2, 66, 65, 31])}
    written = torch.randn(LAYERS, 2, 4, HEADS, 64).bfloat16()
    layers = made.vllm_config.compilation_config.static_forward_context
    for name, (keys, values) in zip(slots, written, strict=True):
        write(layers[name], slots[name], keys, values)
    order = torch.tensor([2, 0, 3, 1])
    keys, values = kv.read_slots(made, slots, order)
    assert torch.equal(keys, written[:, 0, order].float())
    assert torch.equal(values, written[:, 1, order].float())
