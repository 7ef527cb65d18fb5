"""The exit decision, between two decoder layers, for the rows of one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from river_vllm.router.batch import StepBatch
from river_vllm.router.plan import RowPlan
from river_vllm.router.signal import SIGNALS, Reading, Signal, SignalName, reading
from river_vllm.router.waiting import Flags, Waiting

Agree = Callable[[torch.Tensor], torch.Tensor]
"""Makes a float32 tensor the same on every tensor-parallel rank."""


Probe = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Takes layers run and the rows' states before and after the last of them, ``[rows, hidden]``."""


class Router:
    """Moves rows from the backbone to the river as their state settles.

    ``before_layer`` runs in a pre-hook of every decoder layer. It does nothing outside
    ``step``, so warm-up and dummy runs stay on the backbone and are never counted.

    Args:
        num_layers: decoder layers L of the model.
        plan: what the linears read.
        scope: ``token`` lets each unit leave on its own similarity; ``batch`` lets all leave
            together once every one of them would (the paper's minimum over the batch).
        device: where the hidden states are.
        signal: by what a token's state says that it has settled.
        read: ``signal`` by other means than its own operators.
        agree: broadcast of the similarities from one tensor-parallel rank, so that a decision
            is the same everywhere by construction.
    """

    def __init__(
        self,
        num_layers: int,
        plan: RowPlan,
        scope: Literal["token", "batch"] = "token",
        device: torch.device | str = "cpu",
        agree: Agree | None = None,
        signal: SignalName = "cosine",
        read: Reading | None = None,
    ) -> None:
        self.num_layers = num_layers
        self.plan = plan
        self._batch_scope = scope == "batch"
        self._device = torch.device(device)
        self._agree = agree
        self.signal: Signal = SIGNALS[signal]
        """From a row's states before and after a layer to what τ is compared with."""
        self._read = read or reading(self.signal)
        self._batch: StepBatch | None = None
        self._waiting: Waiting | None = None
        self._before: torch.Tensor | None = None
        self.probe: Probe | None = None
        """Sees the states of the rows that are still on the backbone; for measurements."""
        self._limit = num_layers

    @contextmanager
    def step(self, batch: StepBatch, limit: int | None = None) -> Iterator[StepBatch]:
        """Route one forward pass; afterwards ``batch.exit_layer`` holds each unit's depth.

        Args:
            limit: backbone layers after which every row leaves, whether or not in a unit.
        """
        self._batch = batch
        self._limit = self.num_layers if limit is None else limit
        batch.deepest = limit
        settled = np.zeros(len(batch.units), dtype=np.bool_) if batch.together else None
        self._waiting = self._those(batch, np.arange(len(batch.units)), settled)
        try:
            yield batch
            batch.exit_layer[batch.exit_layer < 0] = self._limit
        finally:
            self._batch = self._waiting = self._before = None
            self.plan.reset()

    def before_layer(
        self, layers_run: int, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> None:
        """Decide which rows leave after ``layers_run`` backbone layers.

        Args:
            layers_run: l, backbone layers that the rows have run; 0 before the first.
            hidden, residual: what the layer is called with, ``[rows, hidden]``.
        """
        batch, waiting = self._batch, self._waiting
        if batch is None:
            return
        if layers_run >= self._limit:
            self.plan.all_river()
            return
        if waiting is None or layers_run + 1 < waiting.first:
            return
        similarity = None
        if waiting.measured:
            before = self._before
            wanted = before if layers_run >= waiting.first else None
            after, values = self._read(wanted, *_rows(batch, waiting, hidden, residual))
            if before is not None and self.probe is not None:
                self.probe(layers_run, before, after)
            if values is not None:
                similarity = self._agreed(values)
            self._before = after
        leave = waiting.leaving(layers_run, similarity)
        if leave is not None:
            self._exit(batch, waiting, leave, layers_run)

    def _agreed(self, values: torch.Tensor) -> npt.NDArray[np.float32]:
        if self._agree is not None:
            values = self._agree(values)
        similarity: npt.NDArray[np.float32] = values.cpu().numpy()
        return similarity

    def _exit(self, batch: StepBatch, waiting: Waiting, leave: Flags, layers_run: int) -> None:
        batch.exit_layer[waiting.units[leave]] = layers_run
        stay = ~leave
        staying = waiting.units[stay]
        if self._before is not None and staying.size:
            rows = np.flatnonzero(np.repeat(stay, waiting.lengths))
            self._before = self._before[torch.from_numpy(rows).to(self._device)]
        self._waiting = self._those(batch, staying, waiting.settled(stay))
        if staying.size == 0 and batch.covers_all_rows:
            self.plan.all_river()
            return
        river = batch.rows_of(np.flatnonzero(batch.exit_layer >= 0), self._device)
        self.plan.mixed(river, self._others(batch, river) if batch.measured else None)

    def _those(
        self, batch: StepBatch, units: npt.NDArray[np.intp], settled: Flags | None
    ) -> Waiting | None:
        """None where there is nobody left to decide about."""
        if not units.size:
            return None
        return Waiting(batch, units, self._batch_scope, settled, self._device)

    def _others(self, batch: StepBatch, rows: torch.Tensor) -> torch.Tensor:
        """The step's other rows, int64."""
        others = torch.ones(batch.num_rows, dtype=torch.bool, device=self._device)
        others[rows] = False
        return others.nonzero().squeeze(1)


def _rows(
    batch: StepBatch, waiting: Waiting, hidden: torch.Tensor, residual: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Those of them that wait."""
    rows: torch.Tensor | slice | None = waiting.rows
    if rows is None:
        if len(hidden) == batch.num_rows:
            return hidden, residual
        rows = slice(batch.num_rows)  # what is beyond is padding
    return hidden[rows], None if residual is None else residual[rows]
