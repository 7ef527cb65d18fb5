"""vLLM's forward context for a pass of River's own, beside the one of the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from river_vllm.compat import (
    CommonAttentionMetadata,
    create_forward_context,
    get_forward_context,
    override_forward_context,
)
from river_vllm.step.table import StepTable


@contextmanager
def own_forward_context(
    vllm_config: Any, parts: Iterable[tuple[Any, CommonAttentionMetadata]]
) -> Iterator[None]:
    """Run the model on rows that are not the step's, in the forward that may route them.

    Args:
        parts: the runner's attention groups, each with what its metadata is built from.
    """
    metadata: dict[str, Any] = {}
    slots: dict[str, torch.Tensor] = {}
    for group, common in parts:
        built = group.get_metadata_builder(0).build(0, common)
        for name in group.layer_names:
            metadata[name] = built
            slots[name] = common.slot_mapping
    context = create_forward_context(metadata, vllm_config, slot_mapping=slots, skip_compiled=True)
    with override_forward_context(context):
        yield


def part_metadata(runner: Any, part: StepTable) -> Iterator[tuple[Any, CommonAttentionMetadata]]:
    """The runner's attention groups, each with what its metadata is built from, for the rows of a
    part of the step whose forward context is in force."""
    whole = get_forward_context()
    requests, first = np.unique(part.request, return_index=True)
    lengths = np.add.reduceat(part.rows, first)
    starts = torch.zeros(len(requests) + 1, dtype=torch.int32)
    starts[1:] = torch.from_numpy(np.cumsum(lengths))
    for group in (group for kind in runner.attn_groups for group in kind):
        own = whole.attn_metadata[group.layer_names[0]]
        owners = torch.from_numpy(requests).to(own.seq_lens.device)
        yield (
            group,
            CommonAttentionMetadata(
                query_start_loc=starts.to(own.seq_lens.device),
                query_start_loc_cpu=starts,
                seq_lens=own.seq_lens[owners],
                num_reqs=len(requests),
                num_actual_tokens=part.num_rows,
                max_query_len=int(lengths.max()),
                max_seq_len=own.max_seq_len,
                block_table_tensor=own.block_table[owners],
                slot_mapping=own.slot_mapping[part.origin_rows],
                causal=own.causal,
            ),
        )
