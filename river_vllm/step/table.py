"""A forward pass: its rows as a table, with a line for each group that decides together.

The router writes exit layers into the table; the projections read the precision of each row from
it. After the pass it holds the depth of each group. A step of vLLM's, its rows that run again,
drafts, timing, warm-up and calibration are all passes; ``model/forward.py`` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from river_vllm.config import Scope

Flags: TypeAlias = npt.NDArray[np.bool_]
Indices: TypeAlias = npt.NDArray[np.intp]
Product: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

Head = Literal["backbone", "river", "draft"]
"""The LM head of a pass: bf16, 4-bit candidates made exact, or 4 bit alone."""

Dense: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""``x [..., K]``, ``weight [N, K]``, ``bias [N]`` → ``[..., N]``, all bfloat16."""

_BY_ROW = ("input_ids", "positions", "inputs_embeds")
"""Arguments of a vLLM model that have an entry for each row."""


class Path(IntEnum):
    """The weights with which the rows of the current layer run."""

    BACKBONE = 0
    RIVER = 1
    MIXED = 2


class StepTable:
    """The rows of a forward pass, in order, each in exactly one group.

    A decode token is a group of its own. With sequence-level prefill, the prompt rows that a
    request computes for the first time are one group. All columns have one entry per group.

    Args:
        num_layers: decoder layers L of the model.
        rows: rows of the group.
        threshold: τ; a group with a similarity above it has settled.
        floor: backbone layers that the group runs at least; L or more: the group never leaves.
        replayed: whether the group leaves after exactly ``floor`` layers, as it did before its
            request was preempted.
        request: place of the group's request in the batch.
        scope: which groups leave together (``RiverConfig.scope``).
        device: of the hidden states.
    """

    def __init__(
        self,
        num_layers: int,
        rows: npt.ArrayLike,
        threshold: npt.ArrayLike,
        floor: npt.ArrayLike,
        *,
        replayed: npt.ArrayLike | None = None,
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
        self.free: Flags = self.floor < num_layers
        """Which groups may leave the backbone."""
        known = np.zeros(groups) if replayed is None else replayed
        self.replayed: Flags = np.asarray(known, dtype=np.bool_)
        owners = np.arange(groups) if request is None else request
        self.request: Indices = np.asarray(owners, dtype=np.intp)
        self.scope = scope
        self._device = device
        self.exit_layer: npt.NDArray[np.int32] = np.full(groups, -1, dtype=np.int32)
        """Backbone layers that the group ran before it left; −1 while it has not left."""
        self.limit = num_layers
        """Backbone layers after which every row leaves, regardless of its floor."""
        self.path = Path.BACKBONE
        self.river_rows: torch.Tensor | None = None
        """Rows on the river, int64; set where ``path`` is ``MIXED``."""
        self.states: torch.Tensor | None = None
        """States of the active rows before the last layer, float32 ``[rows, hidden]``."""
        self._activate(np.flatnonzero(self.free))
        self._settled = np.zeros(len(self._active), np.bool_) if scope == "step" else None

    @classmethod
    def forced(
        cls, num_layers: int, request: Sequence[int], layers: int, device: torch.device
    ) -> StepTable:
        """Decode tokens that all leave after ``layers`` backbone layers; ``request`` is the place
        in the batch of each token's request."""
        one = np.ones(len(request), dtype=np.intp)
        return cls(
            num_layers, one, -one, one * layers, replayed=one, request=request, device=device
        )

    @property
    def known_depth(self) -> int | None:
        """The depth at which every row leaves whatever its state; None where that is not known
        before the pass, or differs between rows."""
        unconditional = self.replayed | (self.threshold <= -1.0)
        depth = int(self.floor.max(initial=0))
        same = self.free.all() and unconditional.all() and (self.floor == depth).all()
        return depth if same else None

    def active_rows(
        self, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rows that may still leave, out of ``[rows, hidden]``, which may end in padding."""
        rows = self._rows
        if rows is None:
            if len(hidden) == self.num_rows:
                return hidden, residual
            rows = slice(self.num_rows)
        return hidden[rows], None if residual is None else residual[rows]

    def leaving(self, layers_run: int, similarity: npt.NDArray[np.float32] | None) -> Flags | None:
        """Which of the active groups leave after ``layers_run`` layers; None where none does.

        ``similarity`` has an entry for each active row; None where no group needs one.
        """
        if layers_run < self.first:
            return None
        leave = self._unconditional
        if similarity is not None:
            if self._starts is not None:
                similarity = np.minimum.reduceat(similarity, self._starts)
            settled = similarity > self._limits
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
        """``x [rows, K] -> [rows, N]`` where the pass is on both paths.

        The backbone product runs over all rows: it reads the weight anyway, and the rows that stay
        get the bits of the shape that stock vLLM would run.
        """
        out = backbone(x).flatten(0, -2)
        out[self.river_rows] = river(x.flatten(0, -2)[self.river_rows])
        return out

    def close(self) -> None:
        """End the pass: a group that has not left ran up to the limit."""
        self.exit_layer[self.exit_layer < 0] = self.limit
        self.path = Path.BACKBONE
        self.river_rows = self.states = None
        self._activate(self._active[:0])

    def rows_of(self, groups: Flags) -> torch.Tensor:
        """The rows of these groups, int64, in order."""
        rows = np.flatnonzero(np.repeat(groups, self.rows))
        return torch.from_numpy(rows).to(self._device)

    def only(self, groups: Flags) -> StepTable:
        """A table of these groups alone."""
        return StepTable(
            self.num_layers,
            self.rows[groups],
            self.threshold[groups],
            self.floor[groups],
            replayed=self.replayed[groups],
            request=self.request[groups],
            scope=self.scope,
            device=self._device,
        )

    def _activate(self, groups: Indices) -> None:
        """Prepare all decisions about these groups until one of them leaves: a decision stands
        between two layers of a few milliseconds, and its calls are its cost."""
        self._active = groups
        floor = self.floor[groups]
        self.first = int(floor.min(initial=self.num_layers + 1))
        """Backbone layers before which none of them may leave; more than L if there is none."""
        if not groups.size:
            return
        self.last = int(floor.max())
        """Backbone layers from which on each of them may."""
        replays = self.replayed[groups]
        self._replays = replays if replays.any() else None
        self._limits = self.threshold[groups]
        unconditional = replays | (self._limits <= -1.0)
        self._unconditional = unconditional if unconditional.any() else None
        self.measured = not unconditional.all()
        """Whether the similarity of any of them matters; τ = −1 admits every one."""
        self._lengths = self.rows[groups]
        several = self._lengths.max() > 1
        self._starts = np.cumsum(self._lengths) - self._lengths if several else None
        active = np.zeros(len(self.rows), dtype=np.bool_)
        active[groups] = True
        self._rows: Any = None if active.all() else self.rows_of(active)


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


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The same of a whole pass, in device memory.

    Attributes:
        positions: of the rows, int64 ``[rows]``.
        owners: each row's place among the spans, int64 ``[rows]``.
        requests: each span's request, int64 ``[spans]``.
        starts: each span's first row, and the number of rows, int32 ``[spans + 1]``.
        lengths: tokens of each request up to the span's last, int32 ``[spans]``.
    """

    positions: torch.Tensor
    owners: torch.Tensor
    requests: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, spans: Sequence[Span], device: torch.device) -> Rows:
        """One copy to the device: it makes the host wait."""
        requests, starts, counts = np.array(spans, dtype=np.int64).reshape(-1, 3).T
        ends = np.cumsum(counts)
        owners = np.repeat(np.arange(len(counts)), counts)
        positions = np.arange(len(owners)) + np.repeat(starts - ends + counts, counts)
        parts = (positions, owners, requests, np.append(0, ends), starts + counts)
        held = torch.from_numpy(np.concatenate(parts)).to(device)
        found = held.split([len(part) for part in parts])
        return cls(*found[:3], *(part.to(torch.int32) for part in found[3:]))

    def next(self) -> Rows:
        """The row after that of each request, which has one."""
        return replace(self, positions=self.positions + 1, lengths=self.lengths + 1)


@dataclass(slots=True, eq=False)
class Pass:
    """One forward pass: its rows, their positions, and how to run them.

    Attributes:
        table: its groups of rows; after the pass, how deep each ran.
        spans: the requests of its rows, in order.
        inputs: the model's arguments.
        in_step: whether vLLM's forward context for exactly these rows is in force.
        rows: its spans in device memory; None until a pass needs them.
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
    rows: Rows | None = None

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
            name: strided_as(value, value[..., rows_of]) if name == "positions" else value[rows_of]
            for name, value in self.inputs.items()
            if name in _BY_ROW and value is not None
        }
        part = Pass(table.only(groups), spans, {**self.inputs, **inputs}, exact=self.exact)
        return groups, part


def strided_as(held: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``values`` with the strides of ``held``, which vLLM's compiled forward takes for constants:
    with M-RoPE positions are ``[3, rows]`` of a wider buffer."""
    if values.stride() == held.stride():
        return values
    found = torch.empty_strided(
        values.shape, held.stride(), dtype=values.dtype, device=values.device
    )
    return found.copy_(values)


class Current:
    """The pass under way, for a model's projections and LM head.

    Args:
        num_layers: decoder layers of the model.
    """

    def __init__(self, num_layers: int) -> None:
        self.idle = Pass(StepTable(num_layers, [], [], []), (), {})
        """A pass without rows, between passes: what runs in it serves no request."""
        self.due = self.idle
        self.routed = False
        """Whether the routed forward runs or is being traced, where vLLM compiles another one."""
