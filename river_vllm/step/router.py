"""The exit decision, between two decoder layers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from river_vllm.step.criterion import Reading
from river_vllm.step.table import StepTable

Broadcast = Callable[[torch.Tensor], torch.Tensor]
"""Returns one rank's values on every tensor-parallel rank."""


class Router:
    """Moves groups of a pass from the backbone to the river as their states settle.

    Args:
        read: the exit criterion (``criterion.py``).
        broadcast: gives rank 0's similarities to all ranks, so that they decide alike by
            construction; None with one rank.
    """

    def __init__(self, read: Reading, broadcast: Broadcast | None = None) -> None:
        self._read = read
        self._broadcast = broadcast

    def agreed(self, values: torch.Tensor) -> torch.Tensor:
        """The values that all ranks decide by."""
        return values if self._broadcast is None else self._broadcast(values)

    def decide(
        self,
        table: StepTable,
        layers_run: int,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Decide which groups leave after ``layers_run`` backbone layers.

        Args:
            layers_run: l, backbone layers that the rows have run; 0 before the first.
            hidden, residual: arguments of the next layer, ``[rows, hidden]``.

        Returns:
            The similarity of each active row, float32; None where none was needed.
        """
        if layers_run >= table.limit:
            table.all_river()
            return None
        # From one layer before the first decision on, states are kept for comparison.
        if not table.has_active or layers_run + 1 < table.first:
            return None
        values = None
        if table.measured:
            before = table.states if layers_run >= table.first else None
            table.states, values = self._read(before, *table.active_rows(hidden, residual))
            if values is not None:
                values = self.agreed(values)
        leave = table.leaving(layers_run, None if values is None else values.cpu().numpy())
        if leave is not None:
            table.leave(leave, layers_run)
        return values
