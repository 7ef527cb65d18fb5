"""The exit decision, between two decoder layers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from river_vllm.step.criterion import Reading
from river_vllm.step.table import StepTable

Broadcast = Callable[[torch.Tensor], torch.Tensor]
"""Makes a float32 tensor the same on every tensor-parallel rank."""


class Router:
    """Moves groups of a step from the backbone to the river as their states settle.

    Args:
        read: the exit criterion (``criterion.py``).
        broadcast: gives one rank's similarities to all of them, so that a decision is the same
            everywhere by construction; None with one rank.
    """

    def __init__(self, read: Reading, broadcast: Broadcast | None = None) -> None:
        self.read = read
        self._broadcast = broadcast

    def decide(
        self,
        table: StepTable,
        layers_run: int,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
    ) -> None:
        """Decide which groups leave after ``layers_run`` backbone layers.

        Args:
            layers_run: l, backbone layers that the rows have run; 0 before the first.
            hidden, residual: what the next layer is called with, ``[rows, hidden]``.
        """
        if layers_run >= table.limit:
            table.all_river()
            return
        # One layer before the first decision the states are kept, to be compared with.
        if not table.has_active or layers_run + 1 < table.first:
            return
        similarity = None
        if table.measured:
            before = table.states if layers_run >= table.first else None
            table.states, values = self.read(before, *table.active_rows(hidden, residual))
            if values is not None:
                values = values if self._broadcast is None else self._broadcast(values)
                similarity = values.cpu().numpy()
        leave = table.leaving(layers_run, similarity)
        if leave is not None:
            table.leave(leave, layers_run)
