"""A step with exact rows and rows that may exit, on an engine that compiles its model.

The exact rows want vLLM's compiled forward at the step's own shape: then they get stock vLLM's
bits. That forward cannot branch on data, so the rows that may exit run again, by themselves, in
the one that can (``layers/compiled.py``). They write their own K/V over what the first pass left in
their slots; the exact rows belong to other sequences, or to earlier positions, and are not touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from river_vllm.compat import CommonAttentionMetadata, get_forward_context
from river_vllm.router.batch import ExitUnit, StepBatch
from river_vllm.worker.context import own_forward_context
from river_vllm.worker.feed import RequestRows


@dataclass(frozen=True)
class SubStep:
    """The rows of a step that may exit, packed together.

    Attributes:
        rows: their indices in the step, int64.
        requests: indices of the requests that they belong to, int64.
        starts: first packed row of each of those requests and the total, int32.
        batch: the step's units, over the packed rows.
    """

    rows: torch.Tensor
    requests: torch.Tensor
    starts: torch.Tensor
    batch: StepBatch

    @contextmanager
    def forward_context(self, vllm_config: Any, groups: Sequence[Any]) -> Iterator[None]:
        """vLLM's forward context for these rows alone.

        Args:
            groups: the runner's attention groups, each with its layers and metadata builder.
        """
        whole = get_forward_context()
        parts = [(group, self._common(whole, group.layer_names[0])) for group in groups]
        with own_forward_context(vllm_config, parts):
            yield

    def _common(self, whole: Any, layer: str) -> CommonAttentionMetadata:
        part = whole.attn_metadata[layer]
        lengths = self.starts[1:] - self.starts[:-1]
        return CommonAttentionMetadata(
            query_start_loc=self.starts,
            query_start_loc_cpu=self.starts,
            seq_lens=part.seq_lens[self.requests],
            num_reqs=self.requests.numel(),
            num_actual_tokens=self.rows.numel(),
            max_query_len=int(lengths.max()),
            max_seq_len=part.max_seq_len,
            block_table_tensor=part.block_table[self.requests],
            slot_mapping=part.slot_mapping[self.rows],
            causal=part.causal,
        )


def sub_step(batch: StepBatch, requests: Sequence[RequestRows]) -> SubStep:
    """From each request's first row in a unit to its last row; both in row order."""
    starts, spans, owners = [0], [], []
    units: list[ExitUnit] = []
    pending = list(reversed(batch.units))
    for index, request in enumerate(requests):
        end = request.start + request.count
        mine = []
        while pending and pending[-1].start < end:
            mine.append(pending.pop())
        if not mine:
            continue
        first = mine[0].start
        shift = starts[-1] - first
        units += [replace(u, start=u.start + shift, stop=u.stop + shift) for u in mine]
        spans.append(np.arange(first, end))
        owners.append(index)
        starts.append(starts[-1] + end - first)
    return SubStep(
        rows=torch.from_numpy(np.concatenate(spans)),
        requests=torch.tensor(owners),
        starts=torch.tensor(starts, dtype=torch.int32),
        batch=StepBatch(starts[-1], units, batch.together),
    )
