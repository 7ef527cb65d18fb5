"""Exit mode: a token leaves the backbone when its state has settled.

A step reports one signed number for each request. ``+l``: its token comes from a decode step that
ran *l* backbone layers. ``-l``: it comes from the prompt's last row. ``HELD`` marks a token held on
the backbone because leaving would not have paid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from river_vllm.costs import Costs, Kind
from river_vllm.modes.mode import Numbers, Timed
from river_vllm.step.requests import Request, Scheduled
from river_vllm.step.table import Head, Pass, Span, StepTable

if TYPE_CHECKING:
    from river_vllm.config import RiverConfig
    from river_vllm.model.forward import Forward
    from river_vllm.request import RiverSettings

HELD = 1 << 12
"""The mark; more layers than any model has."""
USUAL_LAYERS = 4
"""Backbone layers of an early exit, if no setting asks for more (the paper: 3 to 4)."""
STAYS = np.iinfo(np.int32).max
"""The floor of rows that stay on the backbone."""


def signed_depth(exit_layer: int, decode: bool, held: bool = False) -> int:
    """The number that a step reports for a request."""
    depth = exit_layer | HELD if held else exit_layer
    return depth if decode else -depth


class ExitMode:
    """Answers with exits: fast and approximate, tuned by the threshold τ.

    Requests on the backbone alone have this mode too: none of their tokens leaves.
    """

    schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "description": "How deep the tokens of this response ran.",
        "properties": {
            "enabled": {"type": "boolean"},
            "mode": {"type": "string", "enum": ["exit", "backbone"]},
            "threshold": {"type": "number"},
            "num_layers": {"type": "integer", "description": "L: a token at L never exited"},
            "tokens": {"type": "integer", "description": "tokens generated in decode steps"},
            "mean_exit_layer": {"type": ["number", "null"]},
            "exit_layers": {
                "type": "object",
                "description": "exit layer (backbone layers run) to number of tokens",
                "additionalProperties": {"type": "integer"},
            },
            "held": {
                "type": "integer",
                "description": "tokens that ran on only because leaving would not have paid",
            },
        },
    }

    def head(self, config: RiverConfig) -> Head | None:
        return "river" if config.lm_head == "river" else None

    def leaves_kv(self, settings: RiverSettings) -> bool:
        return settings.may_exit

    def numbers(self, tokens: int, *, depth: int, drafted: int, kept: int, decode: bool) -> Numbers:
        return np.full(tokens, depth, dtype=np.int16)

    def summary(self) -> ExitSummary:
        return ExitSummary()

    def trace(self, numbers: Numbers) -> list[int]:
        """One exit layer for each token, in order."""
        return (np.abs(numbers) & ~HELD).tolist()


@dataclass(slots=True)
class ExitSummary:
    """Exit layers of one or more choices.

    Attributes:
        layers: exit layer → decode tokens.
    """

    layers: Counter[int] = field(default_factory=Counter)
    held: int = 0
    drafted: int = 0
    accepted: int = 0

    def add(self, numbers: Numbers) -> None:
        decoded = numbers[numbers > 0]
        self.held += int(np.count_nonzero(decoded & HELD))
        values, counts = np.unique(decoded & ~HELD, return_counts=True)
        for layer, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.layers[layer] += count

    def by_layer(self, num_layers: int) -> Counter[int]:
        return self.layers

    def report(self, settings: RiverSettings, num_layers: int) -> dict[str, Any]:
        tokens = self.layers.total()
        run = sum(layer * count for layer, count in self.layers.items())
        return {
            "threshold": settings.threshold,
            "num_layers": num_layers,
            "tokens": tokens,
            "mean_exit_layer": round(run / tokens, 3) if tokens else None,
            "exit_layers": {str(layer): count for layer, count in sorted(self.layers.items())},
            "held": self.held,
        }


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
    if config.no_exits:
        return 0
    # Reading a layer from the checkpoint never pays against running it in 4 bit.
    fetches = config.max_rows == "auto" and config.deep == "fetch"
    return "all" if fetches else config.max_rows


class Line(NamedTuple):
    """A group of rows, for the table of a step; ``held``: only the cost of leaving keeps it."""

    request: int
    start: int
    rows: int
    threshold: float = 1.0
    floor: int = STAYS
    replayed: bool = False
    held: bool = False


class Exits:
    """Decides which rows of a step may leave the backbone, and records how deep each ran.

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
            line for index, rows in enumerate(step) for line in self._lines_of(index, rows, stay)
        ]
        columns = zip(*self._lines, strict=True) if self._lines else [()] * len(Line._fields)
        request, _, rows, threshold, floor, replayed, _ = columns
        return StepTable(
            self._num_layers,
            rows,
            threshold,
            floor,
            replayed=replayed,
            request=request,
            scope=self._config.scope,
            device=self._device,
        )

    def head(self, table: StepTable) -> Head:
        """The LM head of the step: the 4-bit one only if all rows may leave."""
        if self._config.lm_head == "backbone" or not table.free.all():
            return "backbone"
        generating = all(s.start + s.rows > s.request.prompt for s in self._step)
        few = generating and not any(self._every_logit(s.request) for s in self._step)
        return "river" if few else "backbone"

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
        limit = self._costs.max_rows if self._limit == "auto" else self._limit
        most = None if limit == "all" else limit
        return {"crossover": {"max_rows": most, **self._costs.crossover()}}

    def _may_leave_now(self) -> bool:
        """Whether tokens may leave in this step: not if that would make it longer.

        With few rows a layer takes as long as reading its weights. A row that must run the whole
        backbone reads them in any case. With scope ``step`` the other rows then stay too.
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
        return request.may_exit and request.settings.min_layers < self._num_layers

    def _lines_of(self, index: int, scheduled: Scheduled, stay: bool) -> Iterator[Line]:
        """The groups of the batch's request ``index``."""
        request, start = scheduled.request, scheduled.start
        if not self._may_leave(request):
            yield Line(index, start, scheduled.rows)
            return
        settings, stays = request.settings, Line(index, 0, 0)
        new = Line(index, 0, 0, settings.threshold, settings.min_layers)
        again = Line(index, 0, 0, -1.0, replayed=True)
        end, prompt_end = start + scheduled.rows, start + scheduled.prompt_rows
        # Runs of prompt rows that left after the same layer; 0: unknown.
        runs = [(0, prompt_end - start)] if prompt_end > start else []
        if request.prompt_depths is not None:
            depths = groupby(request.prompt_depths[start:prompt_end].tolist())
            runs = [(depth, len(list(same))) for depth, same in depths]
        for depth, rows in runs:
            unknown = new if self._sequence_prefill and not stay else stays
            line = again._replace(floor=depth) if depth else unknown
            yield line._replace(start=start, rows=rows)
            start += rows
        for position in range(start, end):
            token = position - request.prompt
            if token < len(request.depths):
                line = again._replace(floor=request.depths[token])
            else:
                line = stays._replace(held=True) if stay else new
            yield line._replace(start=position, rows=1)
