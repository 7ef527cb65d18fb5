"""Turns a checkpoint's projections into the fused and sharded one of a vLLM module.

vLLM's own weight loaders do the work: they know the order of fused projections, tensor-parallel
shards and replicated K/V heads. Codes, scales and zero points are all ``[outputs, inputs]``, so
each is loaded the way the bf16 weight was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from river_vllm.compat import MergedColumnParallelLinear, ModelWeightParameter, QKVParallelLinear
from river_vllm.kernels.groups import GroupedWeight


@dataclass(frozen=True, slots=True)
class Part:
    """One projection of a checkpoint, as a part of a vLLM module.

    Attributes:
        name: in the checkpoint, without ``.weight``.
        shard: its name in vLLM's loader; None for the whole module.
        shape: outputs and inputs, over all ranks.
    """

    name: str
    shard: str | int | None
    shape: tuple[int, int]


def parts_of(linear: Any, packed_modules: Mapping[str, Sequence[str]]) -> list[Part]:
    """The checkpoint's projections that vLLM fuses into ``linear``, by the model's
    ``packed_modules_mapping``: fused name → names."""
    parent, _, own = linear.prefix.rpartition(".")
    names = [f"{parent}.{part}" for part in packed_modules.get(own, [own])]
    inputs = linear.input_size
    shards: list[str | int | None]
    if isinstance(linear, QKVParallelLinear):
        queries, kv_heads = linear.total_num_heads * linear.head_size, linear.total_num_kv_heads
        sizes = [queries, kv_heads * linear.head_size, kv_heads * linear.v_head_size]
        shards = ["q", "k", "v"]
    elif isinstance(linear, MergedColumnParallelLinear):
        sizes = list(linear.output_sizes)
        shards = list(range(len(sizes)))
    else:
        sizes, shards = [linear.output_size], [None]
    if len(names) == 1:
        return [Part(names[0], None, (sum(sizes), inputs))]
    return [
        Part(name, shard, (size, inputs))
        for name, shard, size in zip(names, shards, sizes, strict=True)
    ]


def assemble(
    linear: nn.Module, parts: Sequence[tuple[Part, GroupedWeight]], group_size: int
) -> GroupedWeight:
    """This rank's shard of ``linear``, whose bf16 weight is loaded and not yet processed."""
    rows, features = linear.weight.shape
    groups = features // group_size
    loaded = {}
    for field, width in (("codes", features), ("scales", groups), ("zeros", groups)):
        dtype = getattr(parts[0][1], field).dtype
        target = ModelWeightParameter(
            data=torch.empty(rows, width, dtype=dtype, device=linear.weight.device),
            input_dim=1,
            output_dim=0,
            weight_loader=linear.weight.weight_loader,
        )
        for part, weight in parts:
            shard = () if part.shard is None else (part.shard,)
            target.weight_loader(target, getattr(weight, field), *shard)
        loaded[field] = target.data
    return GroupedWeight(**loaded)
