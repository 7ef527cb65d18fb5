"""The river's draft steps, on the blocks of the requests themselves.

A draft starts with the token that the backbone has just sampled: its K/V is not computed yet, the
verifying pass of the next step will write it. Every draft step writes the river's K/V into slots
that this pass overwrites, so nothing has to be copied, cleared or computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch

from river_vllm.compat import CommonAttentionMetadata
from river_vllm.step.table import StepTable
from river_vllm.worker.context import own_forward_context


class RiverDrafter:
    """One token for each of some requests, by the river.

    Args:
        runner: vLLM's V1 runner: its model, attention groups and block tables.
        layers: backbone layers that a draft runs first.
        head: what makes the logits: 4 bit alone, which only ranks, or as in a step that exits.
        exact: whether rows on the backbone are to have stock vLLM's bits.
    """

    def __init__(
        self,
        runner: Any,
        layers: int,
        head: Literal["draft", "river", "backbone"],
        exact: bool = True,
    ) -> None:
        self._runner = runner
        self._model = runner.get_model()
        self._layers = layers
        self._head = head
        self._exact = exact

    def step(
        self,
        requests: Sequence[int],
        counts: Sequence[int],
        tokens: torch.Tensor,
        positions: torch.Tensor,
        next_tokens: torch.Tensor | None = None,
    ) -> Any:
        """The river's logits after each of ``tokens``.

        Args:
            requests: places in the runner's batch.
            counts: tokens of each, which follow one another.
            tokens: integers ``[rows]``.
            positions: int64 ``[rows]``, where they stand; their K/V slots are allocated.
            next_tokens: int64, those of ``River.listed`` and others: what a draft's logits are of.

        Returns:
            ``[rows, vocabulary]``, or ``[rows, next_tokens]``.
        """
        river = self._model.river
        # vLLM's compiled forward checks no types: it would read other integers as int32.
        tokens = tokens.to(self._runner.input_ids.gpu.dtype)
        positions = positions.to(self._runner.positions.dtype)
        table = StepTable.forced(river.num_layers, len(tokens), self._layers, positions.device)
        table.head, table.exact, table.tokens = self._head, self._exact, next_tokens

        inputs = self._inputs(tokens)

        def forward(part: StepTable | None = None) -> torch.Tensor:
            hidden: torch.Tensor = self._model(**inputs, positions=positions)
            return hidden

        parts = self._parts(requests, counts, positions)
        with own_forward_context(self._runner.vllm_config, parts):
            logits = self._model.compute_logits(river.run(table, forward))
        river.rest()
        return logits

    def _inputs(self, tokens: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """As vLLM feeds its model (``v1/worker/gpu_model_runner.py``, ``_preprocess``): the
        compiled forward was traced so."""
        runner, model = self._runner, self._model
        if not (runner.supports_mm_inputs or runner.enable_prompt_embeds):
            return {"input_ids": tokens}
        raw = runner.supports_mm_inputs and model.requires_raw_input_tokens
        return {
            "input_ids": tokens if raw else None,
            "inputs_embeds": model.embed_input_ids(tokens),
        }

    def idle_step(self, rows: int) -> None:
        """A step on no request, to its end, for its time; it writes to vLLM's null block."""
        zeros = torch.zeros(rows, dtype=torch.int64, device=self._runner.device)
        logits = self.step([0] * rows, [1] * rows, zeros, zeros, self._model.river.listed)
        logits.float().argmax(dim=-1).tolist()

    def idle_pass(self, rows: int) -> None:
        """The same of the backbone, in vLLM's dummy run, which leaves attention out."""
        hidden, _ = self._runner._dummy_run(rows)
        self._model.compute_logits(hidden[:rows]).float().argmax(dim=-1).tolist()

    def _parts(
        self, requests: Sequence[int], counts: Sequence[int], positions: torch.Tensor
    ) -> Iterator[tuple[Any, CommonAttentionMetadata]]:
        rows, device = len(positions), positions.device
        index = torch.tensor(requests, device=device)
        lengths = torch.tensor(counts, device=device)
        ends = torch.cumsum(lengths, dim=0, dtype=torch.int32)
        starts = torch.cat([ends.new_zeros(1), ends])
        last = positions[ends.long() - 1]
        for gid, groups in enumerate(self._runner.attn_groups):
            tables = self._runner.input_batch.block_table[gid]
            table = tables.block_table.gpu[index]
            size = tables.block_size
            owners = torch.repeat_interleave(lengths, output_size=rows)
            blocks = table[owners, positions // size]
            common = CommonAttentionMetadata(
                query_start_loc=starts,
                query_start_loc_cpu=starts.cpu(),
                seq_lens=(last + 1).to(torch.int32),
                num_reqs=len(requests),
                num_actual_tokens=rows,
                max_query_len=max(counts),
                max_seq_len=int(positions.max()) + 1,
                block_table_tensor=table,
                slot_mapping=blocks.long() * size + positions % size,
                causal=True,
            )
            for group in groups:
                yield group, common
