"""The units of a step that are still on the backbone, and which of them a decision lets go."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from river_vllm.router.batch import StepBatch

Flags: TypeAlias = npt.NDArray[np.bool_]
Indices: TypeAlias = npt.NDArray[np.intp]


class Waiting:
    """What decides about some units, gathered once for all decisions until one of them leaves.

    A decision stands between two layers of a few milliseconds each, for a handful of rows: what it
    costs is the number of its calls.

    Args:
        batch: the step.
        units: indices into ``batch.units``, ascending; at least one.
        whole_step: whether units leave only all at once.
        settled: of ``units``, who would have left already; where ``batch.together``.
        device: of the hidden states.
    """

    __slots__ = (
        *("_all_together", "_limits", "_offsets", "_replayed", "_settled"),
        *("_starts", "first", "last", "lengths", "measured", "min_layers", "rows"),
        *("unconditional", "units"),
    )

    def __init__(
        self,
        batch: StepBatch,
        units: Indices,
        whole_step: bool,
        settled: Flags | None,
        device: torch.device,
    ) -> None:
        self.units = units
        self.min_layers = batch.min_layers[units]
        self.first = int(self.min_layers.min())
        """Backbone layers before which none of them may leave."""
        self.last = int(self.min_layers.max())
        """Backbone layers after which each of them may."""
        unconditional = batch.unconditional[units]
        self.measured = not unconditional.all()
        """Whether the similarity of any of them matters."""
        self.unconditional = unconditional if unconditional.any() else None
        self._limits = batch.threshold[units]
        self._offsets = None if batch.offsets is None else batch.offsets[units]
        replayed = batch.replayed[units]
        self._replayed = replayed if replayed.any() else None
        self._settled = settled
        self._all_together = whole_step or batch.together
        self.lengths: Indices = batch.lengths[units]
        several = self.lengths.max() > 1
        self._starts = np.cumsum(self.lengths) - self.lengths if several else None
        everything = int(self.lengths.sum()) == batch.num_rows
        self.rows = None if everything else batch.rows_of(units, device)
        """Their rows, int64; None where those are all rows of the step."""

    def leaving(self, layers_run: int, similarity: npt.NDArray[np.float32] | None) -> Flags | None:
        """Who leaves after ``layers_run`` backbone layers; None where nobody does.

        Args:
            layers_run: l, backbone layers that they have run.
            similarity: of each row; None where there is none yet, or nobody needs one.
        """
        if layers_run < self.first:
            return None
        leave = self.unconditional
        if similarity is not None:
            over = self._smallest(similarity) > self._limits_after(layers_run)
            leave = over if leave is None else leave | over
        if leave is not None and layers_run < self.last:
            leave = leave & (self.min_layers <= layers_run)
        if self._settled is not None:
            if leave is not None:
                self._settled |= leave
            leave = self._settled
        if leave is None:
            return None
        if self._all_together:
            # What is replayed has decided before; the others leave when all of them would.
            if self._replayed is None:
                return leave if leave.all() else None
            leave = leave & (self._replayed | leave[~self._replayed].all())
        return leave if leave.any() else None

    def settled(self, staying: Flags) -> Flags | None:
        """Who of those that stay would have left already, kept where units leave together."""
        return None if self._settled is None else self._settled[staying]

    def _limits_after(self, layers_run: int) -> npt.NDArray[np.float32]:
        if self._offsets is None:
            return self._limits
        return self._limits + self._offsets[:, layers_run - 1]

    def _smallest(self, similarity: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Per unit: the minimum over its rows."""
        if self._starts is None:
            return similarity
        minimum: npt.NDArray[np.float32] = np.minimum.reduceat(similarity, self._starts)
        return minimum
