"""The description of a forward pass, and the pass under way.

A step of vLLM's, its rows that run again, drafts, timing, warm-up and calibration are all passes.
``forward.py`` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from river_vllm.step.table import Flags, StepTable

Head = Literal["backbone", "river", "draft"]
"""The LM head of a pass: bf16, 4-bit candidates made exact, or 4 bit alone."""

Dense: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""``x [..., K]``, ``weight [N, K]``, ``bias [N]`` → ``[..., N]``, all bfloat16."""

_BY_ROW = ("input_ids", "positions", "inputs_embeds")
"""Arguments of a vLLM model that have an entry for each row."""


class Span(NamedTuple):
    """Consecutive tokens of one request.

    Attributes:
        request: its place in the runner's batch.
        start: position of the first token in the request's sequence.
        rows: how many there are.
    """

    request: int
    start: int
    rows: int


@dataclass(slots=True, eq=False)
class Pass:
    """One forward pass: its rows, their positions, and how to run them.

    Attributes:
        table: its groups of rows; after the pass, how deep each ran.
        spans: the requests of its rows, in order.
        inputs: the model's arguments.
        in_step: whether vLLM's forward context for exactly these rows is in force.
        head: the LM head that makes the logits.
        exact: whether a row needs stock vLLM's bits; otherwise any rounding will do.
        dense: River's own bf16 product, where it replaces vLLM's in this pass.
    """

    table: StepTable
    spans: Sequence[Span]
    inputs: dict[str, Any]
    in_step: bool = False
    head: Head = "backbone"
    exact: bool = True
    dense: Dense | None = None

    def leaving_part(self) -> tuple[Flags, Pass]:
        """The groups that run again where the pass is split, and the pass that runs them.

        A request's groups run again from its first free one on, since attention takes the last rows
        of a sequence.
        """
        table = self.table
        groups = np.zeros(len(table.rows), dtype=np.bool_)
        spans = []
        for span in self.spans:
            mine = np.flatnonzero(table.request == span.request)
            groups[mine] = np.logical_or.accumulate(table.free[mine])
            if rows := int(table.rows[mine][groups[mine]].sum()):
                spans.append(Span(span.request, span.start + span.rows - rows, rows))
        rows_of = table.rows_of(groups)
        inputs = {
            name: value[..., rows_of] if name == "positions" else value[rows_of]
            for name, value in self.inputs.items()
            if name in _BY_ROW and value is not None
        }
        part = Pass(table.only(groups), spans, {**self.inputs, **inputs}, exact=self.exact)
        return groups, part


class Current:
    """The pass under way, for a model's projections and LM head.

    Args:
        num_layers: decoder layers of the model.
    """

    def __init__(self, num_layers: int) -> None:
        self._idle = Pass(StepTable(num_layers, [], [], []), (), {})
        self.due = self._idle
        """The pass; between passes, one without rows."""
        self.routed = False
        """Whether the routed forward runs or is being traced, where vLLM compiles another one."""

    def rest(self, resident: int) -> None:
        """End the pass, its logits too; runs before the next pass serve no request.

        Args:
            resident: leading layers that hold their backbone weights.
        """
        self._idle.table.limit = resident
        self.due = self._idle
