"""One step of the engine as a table: a line for each group of rows that decides together.

A mode makes it from the runner's batch (``modes/``). The router writes exit layers into it, the
projections and the LM head read from it who runs in which precision, and after the pass it says how
deep each row ran.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from river_vllm.config import Scope

Flags: TypeAlias = npt.NDArray[np.bool_]
Indices: TypeAlias = npt.NDArray[np.intp]

Product: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Dense: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""``x [..., K]``, ``weight [N, K]``, ``bias [N]`` → ``[..., N]``, all bfloat16."""


class Path(IntEnum):
    """Where the rows of the layer that runs now are."""

    BACKBONE = 0
    RIVER = 1
    MIXED = 2


class StepTable:
    """The rows of one forward pass, in order, each in exactly one group.

    A decode token is a group of its own; with sequence-level prefill the prompt rows that a request
    computes for the first time are one group. All columns have one entry per group.

    Args:
        num_layers: decoder layers L of the model.
        rows: rows of the group.
        threshold: τ; a state transition similarity above it has settled.
        floor: backbone layers before which the group does not leave; L or more: it never leaves.
        replayed: whether it leaves after exactly ``floor`` layers, as it did before its request
            was preempted.
        held: whether it would be free to leave, had leaving paid.
        request: index of its request in the batch, ascending.
        scope: ``token``: each group leaves on its own similarity. ``step``: all leave together,
            once each has settled at this layer or an earlier one. ``batch``: all leave together,
            where all settle at the same layer (the paper's minimum over the batch).
        device: where the hidden states are.
    """

    __slots__ = (
        *("_device", "_lengths", "_limits", "_rows", "_starts"),
        *("_replays", "_settled", "_unconditional", "_active"),
        *("dense", "exact", "exit_layer", "first", "floor", "head", "held", "last", "limit"),
        *("measured", "num_layers", "num_rows", "origin", "origin_rows", "path"),
        *("replayed", "request", "river_rows", "rows", "scope", "states", "threshold"),
        "tokens",
    )

    def __init__(
        self,
        num_layers: int,
        rows: npt.ArrayLike,
        threshold: npt.ArrayLike,
        floor: npt.ArrayLike,
        *,
        replayed: npt.ArrayLike | None = None,
        held: npt.ArrayLike | None = None,
        request: npt.ArrayLike | None = None,
        scope: Scope = "token",
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_layers = num_layers
        self.rows: Indices = np.asarray(rows, dtype=np.intp)
        groups = len(self.rows)
        self.num_rows = int(self.rows.sum())
        self.threshold = np.asarray(threshold, dtype=np.float32)
        self.floor = np.asarray(floor, dtype=np.int32)
        nothing = np.zeros(groups, dtype=np.bool_)
        self.replayed: Flags = nothing if replayed is None else np.asarray(replayed, np.bool_)
        self.held: Flags = nothing if held is None else np.asarray(held, np.bool_)
        own = np.arange(groups) if request is None else request
        self.request: Indices = np.asarray(own, dtype=np.intp)
        self.scope = scope
        self._device = device
        self.exit_layer: npt.NDArray[np.int32] = np.full(groups, -1, dtype=np.int32)
        """Backbone layers that the group ran before it left; −1 while it has not left."""
        self.limit = num_layers
        """Backbone layers after which every row leaves, whatever its floor."""
        self.path = Path.BACKBONE
        self.river_rows: torch.Tensor | None = None
        """Rows on the river, int64; set where ``path`` is ``MIXED``."""
        self.head: Literal["backbone", "river", "draft"] = "backbone"
        """What makes the logits: the bf16 LM head, 4-bit candidates made exact, or 4 bit alone."""
        self.tokens: torch.Tensor | None = None
        """Of a draft: the tokens that it has logits of, int64, those of ``River.listed`` first;
        without it every token's."""
        self.exact = True
        """Whether a row of it is to have stock vLLM's bits; else any rounding will do."""
        self.dense: Dense | None = None
        """River's own bf16 product, where it takes the place of vLLM's in this step."""
        self.states: torch.Tensor | None = None
        """States of the active rows before the last layer, float32 ``[rows, hidden]``."""
        self.origin: Indices | None = None
        """Of a part: its groups in the whole step's table."""
        self.origin_rows: torch.Tensor | None = None
        """Of a part: its rows in the whole step, int64."""
        self._activate(np.flatnonzero(self.free))
        settled = np.zeros(len(self._active), dtype=np.bool_)
        self._settled: Flags | None = settled if scope == "step" else None

    @classmethod
    def forced(
        cls, num_layers: int, rows: int, layers: int, device: torch.device | str = "cpu"
    ) -> StepTable:
        """``rows`` decode tokens that all leave after ``layers`` backbone layers."""
        one = np.ones(rows, dtype=np.intp)
        return cls(num_layers, one, -one, one * layers, replayed=one, device=device)

    @property
    def free(self) -> Flags:
        """Which groups may leave the backbone."""
        found: Flags = self.floor < self.num_layers
        return found

    @property
    def has_active(self) -> bool:
        """Whether there is a group that may still leave."""
        return self._active.size > 0

    def active_rows(
        self, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of ``[rows, hidden]``, which may end in padding, the rows that may still leave."""
        rows: torch.Tensor | slice | None = self._rows
        if rows is None:
            if len(hidden) == self.num_rows:
                return hidden, residual
            rows = slice(self.num_rows)
        return hidden[rows], None if residual is None else residual[rows]

    def leaving(self, layers_run: int, similarity: npt.NDArray[np.float32] | None) -> Flags | None:
        """Which of the active groups leave after ``layers_run`` layers; None where none does.

        Args:
            similarity: of each active row; None before the first layer, and where no group needs
                one.
        """
        if layers_run < self.first:
            return None
        leave = self._unconditional
        if similarity is not None:
            settled = self._smallest(similarity) > self._limits
            leave = settled if leave is None else leave | settled
        if leave is not None and layers_run < self.last:
            leave = leave & (self.floor[self._active] <= layers_run)
        if self._settled is not None:
            if leave is not None:
                self._settled |= leave
            leave = self._settled
        if leave is None:
            return None
        if self.scope != "token":
            if self._replays is None:
                return leave if leave.all() else None
            # A replayed group leaves where it left before; the others wait for one another.
            leave = leave & (self._replays | leave[~self._replays].all())
        return leave if leave.any() else None

    def leave(self, groups: Flags, layers_run: int) -> None:
        """Move these of the active groups to the river, after ``layers_run`` backbone layers."""
        stay = ~groups
        self.exit_layer[self._active[groups]] = layers_run
        if self.states is not None:
            rows = np.flatnonzero(np.repeat(stay, self._lengths))
            self.states = self.states[torch.from_numpy(rows).to(self._device)]
        if self._settled is not None:
            self._settled = self._settled[stay]
        self._activate(self._active[stay])
        gone = self.exit_layer >= 0
        if gone.all():
            self.all_river()
        else:
            self.path = Path.MIXED
            self.river_rows = self.rows_of(gone)

    def all_river(self) -> None:
        """Every row is on the river from here on."""
        self.path = Path.RIVER
        self.river_rows = None

    def mixed(self, x: torch.Tensor, backbone: Product, river: Product) -> torch.Tensor:
        """``x [rows, K] -> [rows, N]`` where the step is on both paths.

        The backbone product runs over all rows: those that stay see the very shape that stock vLLM
        would run, and their result is the same to the bit. The weight is read for them anyway.
        """
        out = backbone(x).flatten(0, -2)
        out[self.river_rows] = river(x.flatten(0, -2)[self.river_rows])
        return out

    def close(self) -> None:
        """The pass is over: a group that has not left ran up to the limit."""
        self.exit_layer[self.exit_layer < 0] = self.limit
        self.path = Path.BACKBONE
        self.river_rows = self.states = None
        self._activate(self._active[:0])

    def rows_of(self, groups: Flags) -> torch.Tensor:
        """The rows of these groups, int64, in order."""
        rows = np.flatnonzero(np.repeat(groups, self.rows))
        return torch.from_numpy(rows).to(self._device)

    def part(self) -> StepTable:
        """A table of those groups that run in the routed forward when the step is split: of each
        request those from its first free one on, since attention takes the last rows of a
        sequence."""
        free = self.free
        taken = np.zeros(len(free), dtype=np.bool_)
        for request in np.unique(self.request[free]):
            mine = np.flatnonzero(self.request == request)
            taken[mine] = np.logical_or.accumulate(free[mine])
        groups = np.flatnonzero(taken)
        part = type(self)(
            self.num_layers,
            self.rows[groups],
            self.threshold[groups],
            self.floor[groups],
            replayed=self.replayed[groups],
            request=self.request[groups],
            scope=self.scope,
            device=self._device,
        )
        part.origin, part.origin_rows = groups, self.rows_of(taken)
        return part

    def take(self, part: StepTable) -> None:
        """The exit layers of a ``part`` that has run; every other group ran the backbone."""
        self.close()
        self.exit_layer[part.origin] = part.exit_layer

    def _activate(self, groups: Indices) -> None:
        """Gather what decides about these groups, once for all decisions until one of them leaves:
        a decision stands between two layers of a few milliseconds, and its calls are its cost."""
        self._active = groups
        if not groups.size:
            return
        floor = self.floor[groups]
        self.first = int(floor.min())
        """Backbone layers before which none of them may leave."""
        self.last = int(floor.max())
        """Backbone layers from which on each of them may."""
        replays = self.replayed[groups]
        self._replays = replays if replays.any() else None
        unconditional = replays | (self.threshold[groups] <= -1.0)
        self._unconditional = unconditional if unconditional.any() else None
        self.measured = not unconditional.all()
        """Whether the similarity of any of them matters; τ = −1 admits every one."""
        self._limits = self.threshold[groups]
        self._lengths = self.rows[groups]
        several = self._lengths.max() > 1
        self._starts = np.cumsum(self._lengths) - self._lengths if several else None
        active = np.zeros(len(self.rows), dtype=np.bool_)
        active[groups] = True
        self._rows = None if active.all() else self.rows_of(active)

    def _smallest(self, similarity: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Of each group: the minimum over its rows."""
        if self._starts is None:
            return similarity
        minimum: npt.NDArray[np.float32] = np.minimum.reduceat(similarity, self._starts)
        return minimum
