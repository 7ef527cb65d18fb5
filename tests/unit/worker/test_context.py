"""What attention is told of a pass over some of a step's rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm.compat import get_forward_context, override_forward_context
from river_vllm.step.table import StepTable
from river_vllm.worker import context
from river_vllm.worker.context import own_forward_context, part_metadata

NEVER = 1 << 30


class Group:
    """Layers of one K/V cache; builds its metadata as the name of what it was given."""

    def __init__(self, *layers: str) -> None:
        self.layer_names = layers

    def get_metadata_builder(self, _: int) -> Any:
        return self

    def build(self, prefix: int, common: Any) -> str:
        return f"{self.layer_names[0]}: {common.num_actual_tokens} rows"


def whole_step(offset: int) -> Any:
    """Of four requests: their lengths, blocks and the slots of their rows."""
    return SimpleNamespace(
        seq_lens=torch.tensor([4, 10, 10, 14]),
        block_table=torch.arange(4).unsqueeze(1) + offset,
        slot_mapping=torch.arange(9) + offset,
        max_seq_len=14,
        causal=True,
    )


def test_a_part_has_its_own_rows_of_its_own_requests() -> None:
    """A prompt and an exact token run no second time; a replay runs from its first exit on."""
    table = StepTable(
        8,
        rows=[4, 1, 1, 1, 1, 1],
        threshold=[1.0, 0.5, 1.0, 1.0, -1.0, -1.0],
        floor=[NEVER, 1, NEVER, NEVER, 3, 2],
        replayed=[0, 0, 0, 0, 1, 1],
        request=[0, 1, 2, 3, 3, 3],
    )
    runner = SimpleNamespace(attn_groups=[[Group("a", "b")], [Group("c")]])
    metadata = {"a": whole_step(0), "b": whole_step(0), "c": whole_step(100)}
    with override_forward_context(SimpleNamespace(attn_metadata=metadata)):
        parts = dict(part_metadata(runner, table.part()))
    assert list(parts) == [runner.attn_groups[0][0], runner.attn_groups[1][0]]
    for common, offset in zip(parts.values(), (0, 100), strict=True):
        assert common.query_start_loc.tolist() == common.query_start_loc_cpu.tolist() == [0, 1, 3]
        assert (common.num_reqs, common.num_actual_tokens, common.max_query_len) == (2, 3, 2)
        assert (common.seq_lens.tolist(), common.max_seq_len) == ([10, 14], 14)
        assert common.block_table_tensor.flatten().tolist() == [1 + offset, 3 + offset]
        assert common.slot_mapping.tolist() == [4 + offset, 7 + offset, 8 + offset]


def test_a_pass_of_rivers_own_is_beside_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(metadata: Any, vllm_config: Any, **rest: Any) -> Any:
        return SimpleNamespace(attn_metadata=metadata, config=vllm_config, **rest)

    monkeypatch.setattr(context, "create_forward_context", create)
    common: Any = SimpleNamespace(num_actual_tokens=3, slot_mapping="slots")
    with override_forward_context(step := SimpleNamespace()):
        with own_forward_context("config", [(Group("a", "b"), common)]):
            own = get_forward_context()
        assert get_forward_context() is step
    assert own.attn_metadata == {"a": "a: 3 rows", "b": "a: 3 rows"}
    assert own.slot_mapping == {"a": "slots", "b": "slots"}
    assert (own.config, own.skip_compiled) == ("config", True)
