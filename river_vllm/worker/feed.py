"""From a step's requests to the router's units, and back to one exit layer per request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt

from river_vllm.depths import signed_depth
from river_vllm.request import RiverSettings
from river_vllm.router.batch import ExitUnit, StepBatch


@dataclass(frozen=True, slots=True)
class RequestRows:
    """A request's rows in one step.

    Attributes:
        start: index of its first row.
        count: its rows.
        position: sequence position of its first row.
        prompt: tokens of its prompt.
        settings: what the request asked for.
        every_logit: whether its sampling looks at more than the likeliest tokens.
    """

    request_id: str
    start: int
    count: int
    position: int
    prompt: int
    settings: RiverSettings
    every_logit: bool = False

    @property
    def prompt_rows(self) -> int:
        """Rows that belong to the prompt; they come first."""
        return min(self.count, max(0, self.prompt - self.position))


@dataclass(slots=True)
class _Place:
    """Where the rows of one request ended up among a step's units."""

    rows: RequestRows
    first_new: int
    prompt_units: list[tuple[int, int | None]] = field(default_factory=list)
    """Prompt rows and the unit that they are in, run by run."""
    generated_units: list[int | None] = field(default_factory=list)
    held: bool = False
    """Whether the last row would have been free to leave, had it paid."""


class BatchFeed:
    """Tells the router what may leave, and remembers how deep every token ran.

    A request that vLLM preempts is computed again from its start. Its tokens, those of its prompt
    too where prompts may leave, then take the depths that they had the first time, so that its
    K/V and its answer stay the same.

    Args:
        num_layers: decoder layers L.
        prefill: whether prompt rows may leave (``sequence``), and then together.
        max_rows: up to how many generated tokens of a step may leave, and then together, once
            each of its rows would; None lets each leave on its own.
    """

    def __init__(
        self,
        num_layers: int,
        prefill: Literal["backbone", "sequence"],
        max_rows: int | None = None,
    ) -> None:
        self._num_layers = num_layers
        self.max_rows = max_rows
        self._sequence_prefill = prefill == "sequence"
        self._history: dict[str, list[int]] = {}
        self._prompts: dict[str, npt.NDArray[np.int16]] = {}
        self._hold = False
        self._places: list[_Place] = []
        self._batch: StepBatch | None = None

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop what is kept for requests that have ended."""
        for request_id in request_ids:
            self._history.pop(request_id, None)
            self._prompts.pop(request_id, None)

    def begin(self, requests: list[RequestRows]) -> StepBatch:
        """The units of a step; ``requests`` in row order."""
        units: list[ExitUnit] = []
        self._hold = not self._pays(requests)
        self._places = [self._place(rows, units) for rows in requests]
        last = requests[-1] if requests else None
        rows_of_step = last.start + last.count if last else 0
        self._batch = StepBatch(rows_of_step, units, together=self.max_rows is not None)
        return self._batch

    def may_use_river_head(self) -> bool:
        """Whether all of the step's tokens come from decode rows that may exit, and none of
        their requests needs the logits of the whole vocabulary."""
        batch = self._batch
        return (
            batch is not None
            and batch.covers_all_rows
            and all(p.generated_units and not p.rows.every_logit for p in self._places)
        )

    def _pays(self, requests: list[RequestRows]) -> bool:
        """Whether leaving makes the step shorter.

        With few rows a layer takes as long as reading its weights. A row that has to run the whole
        backbone reads them for all: the others then ride along, and what they do in 4 bit comes on
        top.
        """
        if self.max_rows is None:
            return True
        generated = sum(r.count - r.prompt_rows for r in requests)
        return generated <= self.max_rows and all(self._all_may_leave(r) for r in requests)

    def _all_may_leave(self, rows: RequestRows) -> bool:
        may_leave = rows.settings.may_exit and rows.settings.min_layers < self._num_layers
        return may_leave and (self._sequence_prefill or not rows.prompt_rows)

    def settle(self, part: StepBatch) -> None:
        """Take the exit layers from a second pass over the step's units alone."""
        if self._batch is not None:
            self._batch.exit_layer[:] = part.exit_layer

    def finish(self) -> dict[str, int]:
        """After the forward pass: the signed depth of each request's last row."""
        batch, self._batch = self._batch, None
        if batch is None:
            return {}
        return {p.rows.request_id: self._settle(p, batch) for p in self._places}

    def _place(self, rows: RequestRows, units: list[ExitUnit]) -> _Place:
        history = self._history.setdefault(rows.request_id, [])
        settings = rows.settings
        first_generated = rows.position + rows.prompt_rows - rows.prompt
        place = _Place(rows, first_generated)
        if settings.may_exit and self._sequence_prefill:
            self._place_prompt(place, units)
        offsets = settings.layer_offsets
        misfit = offsets is not None and len(offsets) != self._num_layers - 1
        for offset in range(rows.count - rows.prompt_rows):
            row = rows.start + rows.prompt_rows + offset
            index = first_generated + offset
            replay = history[index] if index < len(history) else None
            unit = _unit(row, rows.prompt + index, settings, replay)
            held = self._hold and unit is not None and not unit.forced
            place.held = held
            if unit is None or held or misfit or unit.min_layers >= self._num_layers:
                place.generated_units.append(None)
            else:
                place.generated_units.append(len(units))
                units.append(unit)
        return place

    def _place_prompt(self, place: _Place, units: list[ExitUnit]) -> None:
        """One unit for what is computed for the first time, one for each depth that is replayed."""
        rows = place.rows
        if not rows.prompt_rows:
            return
        known = self._prompts.setdefault(rows.request_id, np.zeros(rows.prompt, dtype=np.int16))
        start = rows.start
        for depth, count in _runs(known[rows.position : rows.position + rows.prompt_rows]):
            if depth == self._num_layers:
                place.prompt_units.append((count, None))
            else:
                place.prompt_units.append((count, len(units)))
                units.append(_prompt_unit(start, count, rows.settings, depth))
            start += count

    def _settle(self, place: _Place, batch: StepBatch) -> int:
        history = self._history.get(place.rows.request_id, [])
        depth = self._settle_prompt(place, batch)
        for offset, unit in enumerate(place.generated_units):
            depth = self._depth(unit, batch)
            if place.first_new + offset >= len(history):
                history.append(depth)
        return signed_depth(depth, bool(place.generated_units), place.held)

    def _settle_prompt(self, place: _Place, batch: StepBatch) -> int:
        """Keep the depths of the step's prompt rows; returns that of the last one."""
        depth, position = self._depth(None, batch), place.rows.position
        for count, unit in place.prompt_units:
            depth = self._depth(unit, batch)
            self._prompts[place.rows.request_id][position : position + count] = depth
            position += count
        return depth

    def _depth(self, unit: int | None, batch: StepBatch) -> int:
        if unit is not None:
            return int(batch.exit_layer[unit])
        return self._num_layers if batch.deepest is None else batch.deepest


def _unit(row: int, position: int, settings: RiverSettings, replay: int | None) -> ExitUnit | None:
    """The unit of one generated token: its recorded depth, or its own decision."""
    if replay is not None:
        return ExitUnit(row, row + 1, -1.0, replay, forced=True)
    if not settings.may_exit:
        return None
    teacher = settings.teacher
    return ExitUnit(
        row,
        row + 1,
        settings.threshold,
        settings.min_layers,
        offsets=settings.layer_offsets,
        token=None if teacher is None else (teacher.sequence, position),
    )


def _prompt_unit(start: int, count: int, settings: RiverSettings, replay: int) -> ExitUnit:
    """The unit of prompt rows: their recorded depth, or (0) their own decision, together."""
    if replay:
        return ExitUnit(start, start + count, -1.0, replay, forced=True)
    return ExitUnit(
        start,
        start + count,
        settings.threshold,
        settings.min_layers,
        offsets=settings.layer_offsets,
    )


def _runs(depths: npt.NDArray[np.int16]) -> Iterator[tuple[int, int]]:
    """Each value and how often it stands in a row."""
    for depth, same in groupby(depths.tolist()):
        yield depth, sum(1 for _ in same)
