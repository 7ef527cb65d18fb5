"""The rows of one step, grouped into what exits together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class ExitUnit:
    """Contiguous rows that leave the backbone together.

    A decode token is a unit of one row; under sequence-level prefill a prompt's chunk is one
    unit. A row that belongs to no unit stays on the backbone.
    """

    start: int
    stop: int
    threshold: float
    min_layers: int
    forced: bool = False
    """Leaves after exactly ``min_layers`` layers, whatever its similarity."""
    offsets: tuple[float, ...] | None = None
    """Added to the threshold, for the decisions after 1 … L−1 layers."""
    token: tuple[int, int] | None = None
    """Text and position of a teacher-forced token, for observers."""

    @property
    def unconditional(self) -> bool:
        """Whether it leaves without being measured; τ = −1 admits every similarity there is."""
        return self.forced or self.threshold <= -1.0

    @property
    def rows(self) -> int:
        return self.stop - self.start


class StepBatch:
    """All units of one step, as arrays for the router.

    Args:
        num_rows: token rows of the step, padding not counted.
        units: in row order, not overlapping.
        together: whether units leave together, once each of them would have left at this layer
            or an earlier one. (``scope="batch"`` asks all of them at the same layer.)
    """

    def __init__(self, num_rows: int, units: list[ExitUnit], together: bool = False) -> None:
        self.num_rows = num_rows
        self.together = together
        self.units = units
        self.threshold: npt.NDArray[np.float32] = np.array(
            [u.threshold for u in units], dtype=np.float32
        )
        self.min_layers: npt.NDArray[np.int32] = np.array(
            [u.min_layers for u in units], dtype=np.int32
        )
        self.replayed: npt.NDArray[np.bool_] = np.array([u.forced for u in units], dtype=np.bool_)
        self.unconditional: npt.NDArray[np.bool_] = np.array(
            [u.unconditional for u in units], dtype=np.bool_
        )
        self.lengths: npt.NDArray[np.intp] = np.array([u.rows for u in units], dtype=np.intp)
        self.offsets = _stacked(units)
        """Added to the thresholds, ``[units, L − 1]``; None where no unit has any."""
        self.measured = any(u.token is not None for u in units)
        """Whether the step is part of a measurement, whose rows are owed nobody stock's bits."""
        self.exit_layer: npt.NDArray[np.int32] = np.full(len(units), -1, dtype=np.int32)
        """Backbone layers run before the exit, −1 where the unit has not left."""
        self.deepest: int | None = None
        """Backbone layers that a row of no unit ran; None where that is all of them."""

    @classmethod
    def forced(cls, rows: int, layers: int) -> StepBatch:
        """All rows leave after ``layers`` layers, each a unit."""
        units = [ExitUnit(row, row + 1, -1.0, layers, forced=True) for row in range(rows)]
        return cls(rows, units)

    def rows_of(self, units: npt.NDArray[np.intp], device: torch.device) -> torch.Tensor:
        """Rows of these units (indices, ascending), int64, in row order."""
        spans = [np.arange(self.units[u].start, self.units[u].stop) for u in units]
        rows = np.concatenate(spans) if spans else np.empty(0, dtype=np.int64)
        return torch.from_numpy(rows).to(device)

    @property
    def covers_all_rows(self) -> bool:
        return int(self.lengths.sum()) == self.num_rows


def _stacked(units: list[ExitUnit]) -> npt.NDArray[np.float32] | None:
    """The units' offsets ``[units, L − 1]``; None where no unit has any."""
    given = next((u.offsets for u in units if u.offsets is not None), None)
    if given is None:
        return None
    none = (0.0,) * len(given)
    return np.array([none if u.offsets is None else u.offsets for u in units], dtype=np.float32)
