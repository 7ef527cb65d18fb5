"""K and V read back out of vLLM's paged blocks, on the CPU.

vLLM's CPU attention stores K in a layout that depends on the instruction set. The layout is a
permutation within a block, so it is measured: a block of known values is written with vLLM's own
operator and looked at.
"""

from __future__ import annotations

from typing import Any

import torch

BASE = 128
"""Indices are written as two digits of this base: bfloat16 holds whole numbers to 256."""


def read(worker: Any, block_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of ``block_ids`` (runs in the worker).

    Returns:
        Two float32 tensors ``[layers, slots, kv_heads, head_size]``.
    """
    layers = [_read_layer(layer, block_ids) for layer in attention_layers(worker).values()]
    keys, values = zip(*layers, strict=True)
    return torch.stack(keys), torch.stack(values)


def _read_layer(layer: Any, block_ids: list[int]) -> list[torch.Tensor]:
    """K and V of one layer's blocks, float32 ``[slots, kv_heads, head_size]``."""
    cache = layer.kv_cache
    blocks, heads, size, width = cache.shape
    head_size = width // 2
    halves = cache.view(blocks, heads, 2, size * head_size)[block_ids]
    found = []
    for half, order in enumerate(_layout(heads, size, head_size, cache.dtype, layer.isa)):
        plain = torch.empty(len(block_ids), heads, size * head_size)
        plain[:, :, order] = halves[:, :, half].float()
        plain = plain.view(len(block_ids), heads, size, head_size)
        found.append(plain.transpose(1, 2).reshape(-1, heads, head_size))
    return found


def attention_layers(worker: Any) -> dict[str, Any]:
    context = worker.vllm_config.compilation_config.static_forward_context
    # Other things that operators look up by name are kept there too.
    return {name: layer for name, layer in context.items() if hasattr(layer, "kv_cache")}


def _layout(
    heads: int, size: int, head_size: int, dtype: torch.dtype, isa: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """For K and V: the plain index (slot, feature) of each stored element of a block."""
    from vllm import _custom_ops as ops

    index = torch.arange(size * head_size)
    digits = []
    for digit in (index % BASE, index // BASE):
        block = torch.zeros(1, heads, size * 2, head_size, dtype=dtype)
        key_cache, value_cache = block.chunk(2, dim=2)
        plain = digit.view(size, 1, head_size).expand(-1, heads, -1).to(dtype).contiguous()
        ops.cpu_attn_reshape_and_cache(
            plain, plain, key_cache, value_cache, torch.arange(size), isa
        )
        digits.append(block.view(heads, 2, size * head_size)[0].long())
    found = digits[0] + BASE * digits[1]
    for half in found:
        if not torch.equal(half.sort().values, index):
            raise RuntimeError("vLLM's block layout is not a permutation on this CPU")
    return found[0], found[1]
