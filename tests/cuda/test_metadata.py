"""What attention is told of River's own passes, by a group of vLLM's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.worker.utils import AttentionGroup

from river_vllm.compat import CommonAttentionMetadata, get_forward_context
from river_vllm.model import forward as module
from river_vllm.model.forward import Forward
from river_vllm.step.table import Span

MANAGERS, KERNELS, REQUESTS = 32, 16, 3


class Builder:
    """A kernel's: what it is told is the metadata."""

    def build(self, prefix: int, told: CommonAttentionMetadata) -> CommonAttentionMetadata:
        return told


@pytest.fixture
def forward(monkeypatch: pytest.MonkeyPatch) -> Forward:
    """Three requests, in blocks of 32; the kernel's have 16."""
    group = AttentionGroup(
        SimpleNamespace(),  # type: ignore[arg-type]
        ["layer"],
        SimpleNamespace(block_size=MANAGERS),  # type: ignore[arg-type]
        0,
        kernel_block_size=KERNELS,
        kernel_block_table=torch.zeros(1, REQUESTS, 8, dtype=torch.int32),
        kernel_block_offsets=torch.arange(MANAGERS // KERNELS, dtype=torch.int32),
        metadata_builders=[Builder()],  # type: ignore[list-item]
    )
    blocks = torch.tensor([[5, 6, 0, 0], [7, 8, 9, 0], [1, 2, 3, 4]], dtype=torch.int32)
    table = SimpleNamespace(block_size=MANAGERS, block_table=SimpleNamespace(gpu=blocks))
    runner: Any = SimpleNamespace(
        device=torch.device("cpu"),
        vllm_config=None,
        attn_groups=[[group]],
        input_batch=SimpleNamespace(block_table=[table]),
        input_ids=SimpleNamespace(gpu=torch.zeros(1, dtype=torch.int32)),
        positions=torch.zeros(1, dtype=torch.int64),
        max_num_reqs=REQUESTS,
        uses_mrope=False,
        supports_mm_inputs=False,
        enable_prompt_embeds=False,
        get_model=lambda: SimpleNamespace(river=SimpleNamespace(num_layers=4)),
    )

    def create(metadata: Any, vllm_config: Any, slot_mapping: Any) -> Any:
        return SimpleNamespace(attn_metadata=metadata, slots=slot_mapping)

    monkeypatch.setattr(module, "create_forward_context", create)
    return Forward(runner)


def told(forward: Forward, due: Any) -> tuple[Any, list[int]]:
    with forward._context(due):
        context: Any = get_forward_context()
        return context.attn_metadata["layer"], context.slots["layer"].tolist()


def test_drafts_reach_a_kernels_smaller_blocks(forward: Forward) -> None:
    spans = [Span(2, 33, 2), Span(0, 31, 1)]
    due = forward.decode(spans, torch.tensor([1, 2, 3]), 0, "draft")
    metadata, slots = told(forward, due)
    # A block of the manager's is two of the kernel's; slots are the same numbers either way.
    assert metadata.block_table_tensor.tolist() == [
        [2, 3, 4, 5, 6, 7, 8, 9],
        [10, 11, 12, 13, 0, 1, 0, 1],
    ]
    assert slots == [2 * MANAGERS + 1, 2 * MANAGERS + 2, 5 * MANAGERS + 31]
    assert metadata.seq_lens.tolist() == metadata.seq_lens_cpu_upper_bound.tolist() == [35, 32]
    for span, slot in ((spans[0], slots[0]), (spans[1], slots[2])):
        row = [2, 0].index(span.request)
        kernels = metadata.block_table_tensor[row, span.start // KERNELS]
        assert int(kernels) * KERNELS + span.start % KERNELS == slot


@pytest.mark.parametrize("rows", [1, 3, 4, 11])
def test_a_timed_pass_has_no_more_requests_than_a_batch(forward: Forward, rows: int) -> None:
    """A kernel's table of blocks has a line for each."""
    due = forward.idle(rows, 0, "draft")
    metadata, slots = told(forward, due)
    assert due.table.num_rows == len(slots) == rows
    assert metadata.num_reqs == min(rows, REQUESTS)
    assert metadata.query_start_loc.tolist()[-1] == rows
