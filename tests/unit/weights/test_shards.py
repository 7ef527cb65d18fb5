"""Projections of a checkpoint in vLLM's fused and sharded modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.model_executor.layers import linear as vllm_linear
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)

from river_vllm.weights.quantizers import QUANTIZERS, GroupedWeight
from river_vllm.weights.shards import Part, assemble, parts_of
from tests.unit.weights.test_rtn import weights

pytestmark = pytest.mark.usefixtures("vllm_world")

PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
HIDDEN, HEAD, HEADS, KV_HEADS, GROUP = 64, 8, 8, 2, 32


def on_rank(rank: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a module reads of its tensor-parallel group when it is made."""
    for module in (vllm_linear, __import__("vllm.model_executor.parameter", fromlist=["_"])):
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)
        monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: size)


def qkv() -> Any:
    options = {"bias": False, "params_dtype": torch.bfloat16, "prefix": "m.0.qkv_proj"}
    return QKVParallelLinear(HIDDEN, HEAD, HEADS, KV_HEADS, **options)


def gate_up() -> Any:
    options = {"bias": False, "params_dtype": torch.bfloat16, "prefix": "m.0.gate_up_proj"}
    return MergedColumnParallelLinear(HIDDEN, [96, 96], **options)


def row() -> Any:
    options = {"bias": False, "params_dtype": torch.bfloat16, "prefix": "m.0.down_proj"}
    return RowParallelLinear(128, HIDDEN, **options)


def made(parts: list[Part]) -> list[tuple[Part, GroupedWeight]]:
    return [
        (part, QUANTIZERS["hqq"](weights(*part.shape, seed=index), GROUP))
        for index, part in enumerate(parts)
    ]


def test_parts_have_the_checkpoints_names_and_shapes() -> None:
    assert parts_of(qkv(), PACKED) == [
        Part("m.0.q_proj", "q", (64, HIDDEN)),
        Part("m.0.k_proj", "k", (16, HIDDEN)),
        Part("m.0.v_proj", "v", (16, HIDDEN)),
    ]
    assert parts_of(gate_up(), PACKED) == [
        Part("m.0.gate_proj", 0, (96, HIDDEN)),
        Part("m.0.up_proj", 1, (96, HIDDEN)),
    ]
    assert parts_of(row(), PACKED) == [Part("m.0.down_proj", None, (HIDDEN, 128))]
    # A checkpoint that has them fused already.
    assert parts_of(qkv(), {}) == [Part("m.0.qkv_proj", None, (96, HIDDEN))]
    plain = ReplicatedLinear(32, 16, bias=False, prefix="m.x")
    assert parts_of(plain, PACKED) == [Part("m.x", None, (16, 32))]


@pytest.mark.parametrize("make", [qkv, gate_up, row])
def test_one_rank_holds_the_parts_one_below_the_other(make: Any) -> None:
    linear = make()
    parts = made(parts_of(linear, PACKED))
    whole = assemble(linear, parts, GROUP)
    for field in ("codes", "scales", "zeros"):
        expected = torch.cat([getattr(weight, field) for _, weight in parts])
        assert torch.equal(getattr(whole, field), expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("make", "size"), [(qkv, 2), (qkv, 4), (gate_up, 2), (row, 2)])
def test_each_rank_gets_the_shard_of_its_bf16_weight(
    make: Any, size: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes go where the same loader puts the dequantised weight; four ranks share K/V heads."""
    for rank in range(size):
        on_rank(rank, size, monkeypatch)
        linear = make()
        parts = made(parts_of(linear, {} if fused else PACKED))
        for part, weight in parts:
            shard = () if part.shard is None else (part.shard,)
            linear.weight.weight_loader(linear.weight, weight.dequantize().bfloat16(), *shard)
        whole = assemble(linear, parts, GROUP)
        assert torch.equal(whole.dequantize().bfloat16(), linear.weight.data)
