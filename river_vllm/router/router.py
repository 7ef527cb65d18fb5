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
from river_vllm.router.signal import SIGNALS, Signal, SignalName, residual_stream

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
    ) -> None:
        self.num_layers = num_layers
        self.plan = plan
        self._batch_scope = scope == "batch"
        self._device = torch.device(device)
        self._agree = agree
        self.signal: Signal = SIGNALS[signal]
        """From a row's states before and after a layer to what τ is compared with."""
        self._batch: StepBatch | None = None
        self._active: npt.NDArray[np.intp] = np.empty(0, dtype=np.intp)
        self._rows: torch.Tensor | None = None
        self._lengths: npt.NDArray[np.intp] = np.empty(0, dtype=np.intp)
        self._count = 0
        self._before: torch.Tensor | None = None
        self._first_exit = 0
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
        self._track(batch, np.arange(len(batch.units)))
        try:
            yield batch
            batch.exit_layer[batch.exit_layer < 0] = self._limit
        finally:
            self._batch = None
            self._active = np.empty(0, dtype=np.intp)
            self._before = None
            self.plan.reset()

    def before_layer(
        self, layers_run: int, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> None:
        """Decide which rows leave after ``layers_run`` backbone layers.

        Args:
            layers_run: l, backbone layers that the rows have run; 0 before the first.
            hidden, residual: what the layer is called with, ``[rows, hidden]``.
        """
        batch = self._batch
        if batch is None:
            return
        if layers_run >= self._limit:
            self.plan.all_river()
            return
        if self._active.size == 0 or layers_run + 1 < self._first_exit:
            return
        active = self._active
        ready = batch.min_layers[active] <= layers_run
        leave = batch.unconditional[active] & ready
        if not batch.unconditional[active].all():
            stream = self._stream(hidden, residual)
            if self._before is not None and self.probe is not None:
                self.probe(layers_run, self._before, stream)
            if self._before is not None and ready.any():
                settled = (
                    self._similarity(self._before, stream)
                    > batch.threshold_after(layers_run)[active]
                )
                leave |= settled & ready
            self._before = stream
        if batch.together:
            batch.settled[active] |= leave
            leave = batch.settled[active]
        if self._batch_scope or batch.together:
            # What is replayed has decided before; the others leave when all of them would.
            replayed = batch.replayed[active]
            leave &= replayed | leave[~replayed].all()
        if leave.any():
            self._exit(batch, active[leave], active[~leave], layers_run)

    def _stream(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        rows = self._rows
        if rows is None:
            count = self._count  # rows beyond it are padding
            return residual_stream(hidden[:count], None if residual is None else residual[:count])
        return residual_stream(hidden[rows], None if residual is None else residual[rows])

    def _similarity(self, before: torch.Tensor, after: torch.Tensor) -> npt.NDArray[np.float32]:
        """Per active unit: the minimum over its rows."""
        values = self.signal(before, after)
        if self._agree is not None:
            values = self._agree(values)
        similarity: npt.NDArray[np.float32] = values.cpu().numpy()
        if similarity.size == self._lengths.size:
            return similarity
        starts = np.concatenate(([0], np.cumsum(self._lengths)[:-1]))
        minimum: npt.NDArray[np.float32] = np.minimum.reduceat(similarity, starts)
        return minimum

    def _exit(
        self,
        batch: StepBatch,
        leaving: npt.NDArray[np.intp],
        staying: npt.NDArray[np.intp],
        layers_run: int,
    ) -> None:
        batch.exit_layer[leaving] = layers_run
        exited = np.flatnonzero(batch.exit_layer >= 0)
        if self._before is not None and staying.size:
            kept = np.isin(self._active, staying)
            rows = np.flatnonzero(np.repeat(kept, self._lengths))
            self._before = self._before[torch.from_numpy(rows).to(self._device)]
        self._track(batch, staying)
        if staying.size == 0 and batch.covers_all_rows:
            self.plan.all_river()
        else:
            river = self._row_index(batch, exited)
            self.plan.mixed(river, self._others(river) if batch.measured else None)

    def _others(self, rows: torch.Tensor) -> torch.Tensor:
        """The step's other rows, int64."""
        assert self._batch is not None
        others = torch.ones(self._batch.num_rows, dtype=torch.bool, device=self._device)
        others[rows] = False
        return others.nonzero().squeeze(1)

    def _track(self, batch: StepBatch, active: npt.NDArray[np.intp]) -> None:
        self._active = active
        self._lengths = np.array([batch.units[u].rows for u in active], dtype=np.intp)
        self._count = batch.num_rows
        self._first_exit = int(batch.min_layers[active].min()) if active.size else 0
        everything = int(self._lengths.sum()) == batch.num_rows
        self._rows = None if everything else self._row_index(batch, active)

    def _row_index(self, batch: StepBatch, units: npt.NDArray[np.intp]) -> torch.Tensor:
        """Rows of ``units``, int64, in row order."""
        spans = [np.arange(batch.units[u].start, batch.units[u].stop) for u in units]
        rows = np.concatenate(spans) if spans else np.empty(0, dtype=np.int64)
        return torch.from_numpy(rows).to(self._device)
