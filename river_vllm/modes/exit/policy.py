"""Decides which rows of a step may leave the backbone, and records how deep each ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np

from river_vllm.config import RiverConfig
from river_vllm.costs import Costs, Kind
from river_vllm.model.forward import Forward
from river_vllm.modes.exit import signed_depth
from river_vllm.modes.mode import Timed
from river_vllm.step.requests import Request, Scheduled
from river_vllm.step.table import Head, Pass, Span, StepTable

USUAL_LAYERS = 4
"""Backbone layers of an early exit, if no setting asks for more (the paper: 3 to 4)."""
NEVER = np.iinfo(np.int32).max
"""The floor of rows that stay on the backbone."""


def usual_layers(config: RiverConfig) -> int:
    """The most backbone layers that a step with early exits runs."""
    return max(config.min_layers, USUAL_LAYERS)


def timed(config: RiverConfig, forward: Forward, requests: int) -> dict[Kind, Timed]:
    """The kinds of passes whose times decide on exits, with up to ``requests`` rows."""
    if _limit(config) != "auto":
        return {}
    layers = min(usual_layers(config), forward.river.num_layers)
    return {"river": Timed(lambda rows: forward.idle(rows, layers, config.lm_head), requests)}


def _limit(config: RiverConfig) -> int | Literal["all", "auto"]:
    # Reading a layer from the checkpoint never pays against running it in 4 bit.
    fetches = config.max_rows == "auto" and config.deep == "fetch"
    return "all" if fetches else config.max_rows


class Line(NamedTuple):
    """A group of rows, for the table of a step."""

    request: int
    start: int
    rows: int
    threshold: float = 1.0
    floor: int = NEVER
    replayed: bool = False
    held: bool = False


class Exits:
    """Decides which rows of a step may leave the backbone, and remembers how deep each ran.

    vLLM computes a preempted request again from its start. Its tokens leave after the same layers
    as the first time, so its K/V and its answer stay the same.

    Args:
        config: scope, prefill, and the limit on rows.
        num_layers: decoder layers L of the model.
        costs: whether leaving pays.
        every_logit: whether sampling a request needs more logits than those of likely tokens.
        device: of the hidden states.
    """

    def __init__(
        self,
        config: RiverConfig,
        num_layers: int,
        costs: Costs,
        every_logit: Callable[[Request], bool],
        device: Any = "cpu",
    ) -> None:
        self._config = config
        self._num_layers = num_layers
        self._costs = costs
        self._every_logit = every_logit
        self._device = device
        self._sequence_prefill = config.prefill == "sequence"
        self._limit = _limit(config)
        self._step: Sequence[Scheduled] = ()
        self._lines: list[Line] = []

    def table(self, step: Sequence[Scheduled]) -> StepTable:
        """The table of a step."""
        self._step = step
        stay = not self._may_leave_now()
        self._lines = [
            line
            for index, scheduled in enumerate(step)
            for line in self._lines_of(index, scheduled, stay)
        ]
        columns = zip(*self._lines, strict=True) if self._lines else [()] * len(Line._fields)
        request, _, rows, threshold, floor, replayed, held = columns
        return StepTable(
            self._num_layers,
            rows,
            threshold,
            floor,
            replayed=replayed,
            held=held,
            request=request,
            scope=self._config.scope,
            device=self._device,
        )

    def head(self, table: StepTable) -> Head:
        """The LM head of the step: the 4-bit one only if all rows may leave."""
        if self._config.lm_head == "backbone" or not table.free.all():
            return "backbone"
        generating = all(s.start + s.rows > s.request.prompt for s in self._step)
        every = any(self._every_logit(s.request) for s in self._step)
        return "river" if generating and not every else "backbone"

    def spans(self) -> list[Span]:
        """The positions of the step's rows, by request."""
        return [Span(i, s.start, s.rows) for i, s in enumerate(self._step)]

    def groups(self) -> Iterator[tuple[Line, Request]]:
        """The groups of the step, each with its request."""
        return ((line, self._step[line.request].request) for line in self._lines)

    def depths(self, table: StepTable) -> list[int]:
        """The signed depth of each request's last row after the pass, in the batch's order."""
        found = [0] * len(self._step)
        for line, depth in zip(self._lines, table.exit_layer.tolist(), strict=True):
            request = self._step[line.request].request
            generated = line.start + line.rows - 1 - request.prompt
            if self._may_leave(request):
                if generated >= len(request.depths):
                    request.depths.append(depth)
                elif generated < 0 and self._sequence_prefill:
                    if request.prompt_depths is None:
                        request.prompt_depths = np.zeros(request.prompt, dtype=np.int16)
                    request.prompt_depths[line.start : line.start + line.rows] = depth
            found[line.request] = signed_depth(depth, generated >= 0, line.held)
        return found

    def kind(self, done: Pass) -> Kind | None:
        """The kind of pass of a step; None if its time says nothing about a kind.

        Only decode steps count; of those with exits, only steps that left early.
        """
        if any(scheduled.prompt_rows for scheduled in self._step):
            return None
        free = done.table.free
        if not free.any():
            return "backbone" if done.dense is None else "verify"
        early = free.all() and done.table.exit_layer.max() <= usual_layers(self._config)
        return "river" if early else None

    def info(self) -> dict[str, Any]:
        """The most rows with which tokens leave, for operators."""
        limit: int | str | None = self._limit
        if limit == "auto":
            limit = self._costs.max_rows
        most = None if limit == "all" else limit
        return {"crossover": {"max_rows": most, **self._costs.crossover()}}

    def _may_leave_now(self) -> bool:
        """Whether tokens may leave in this step: not if that would make it longer.

        With few rows a layer takes as long as reading its weights. A row that must run the whole
        backbone reads them in any case, and other rows in 4 bit would add time. With scope ``step``
        they then stay too.
        """
        generated, whole = 0, True
        for scheduled in self._step:
            prompt_rows = scheduled.prompt_rows
            generated += scheduled.rows - prompt_rows
            whole &= self._may_leave(scheduled.request)
            whole &= not prompt_rows or self._sequence_prefill
        if self._config.scope == "step" and not whole:
            return False
        if self._limit == "all" or not generated:
            return True
        if self._limit != "auto":
            return generated <= int(self._limit)
        return self._costs.choose(generated) if whole else self._costs.pays(generated)

    def _may_leave(self, request: Request) -> bool:
        settings = request.settings
        return settings.may_exit and settings.min_layers < self._num_layers

    def _lines_of(self, index: int, scheduled: Scheduled, stay: bool) -> Iterator[Line]:
        """The groups of the batch's request ``index``."""
        request, start = scheduled.request, scheduled.start
        if not self._may_leave(request):
            yield Line(index, start, scheduled.rows)
            return
        settings, end = request.settings, start + scheduled.rows
        new = Line(index, 0, 0, settings.threshold, settings.min_layers)
        held = Line(index, 0, 0, held=True)
        unknown = new if self._sequence_prefill and not stay else Line(index, 0, 0)
        for depth, rows in self._prompt_runs(request, start, start + scheduled.prompt_rows):
            line = self._replayed(index, depth) if depth else unknown
            yield line._replace(start=start, rows=rows)
            start += rows
        for position in range(start, end):
            token = position - request.prompt
            if token < len(request.depths):
                line = self._replayed(index, request.depths[token])
            else:
                line = held if stay else new
            yield line._replace(start=position, rows=1)

    def _replayed(self, index: int, depth: int) -> Line:
        """A group that leaves after ``depth`` layers, as it did before."""
        return Line(index, 0, 0, -1.0, depth, replayed=True)

    def _prompt_runs(self, request: Request, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Layer and length of each run of prompt rows that left after one layer; 0: unknown."""
        if request.prompt_depths is None:
            if end > start:
                yield 0, end - start
            return
        for depth, same in groupby(request.prompt_depths[start:end].tolist()):
            yield depth, sum(1 for _ in same)
