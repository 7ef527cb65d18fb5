"""What a worker knows of each step: which rows may leave, how deep each ran, what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from river_vllm.compat import BUILTIN_LOGITS_PROCESSORS
from river_vllm.config import RiverConfig
from river_vllm.costs import Costs, Kind, costs_of_start
from river_vllm.depths import signed_depth
from river_vllm.parameters import needs_every_logit
from river_vllm.request import RiverSettings, default_settings, settings_of
from river_vllm.step.table import StepTable
from river_vllm.verify.drafter import RiverDrafter

USUAL_LAYERS = 4
"""Backbone layers of a token that leaves where no setting asks for more (the paper: 3 to 4)."""
NEVER = np.iinfo(np.int32).max
"""The floor of rows that stay on the backbone."""


@dataclass(slots=True)
class Request:
    """What the worker keeps of a request from its first step on.

    Attributes:
        settings: what it asked for.
        sent: tokens that it came with.
        prompt: of these its prompt: in a calibration a known answer follows it.
        may_leave: whether a token of it may leave the backbone by its own decision.
        every_logit: whether its sampling looks at more than the likeliest tokens.
        depths: exit layer of each generated token, in order.
        prompt_depths: exit layer of each token of the prompt, 0 where it has not been computed;
            None where none may leave, or did.
    """

    settings: RiverSettings
    sent: int
    prompt: int
    may_leave: bool
    every_logit: bool = False
    depths: list[int] = field(default_factory=list)
    prompt_depths: npt.NDArray[np.int16] | None = None


class Line(NamedTuple):
    """A group of rows, for the step's table."""

    request: int
    position: int
    rows: int
    threshold: float = 1.0
    floor: int = NEVER
    replayed: bool = False
    held: bool = False


class Steps:
    """Makes the table of each step, and remembers how deep every token ran.

    A request that vLLM preempts is computed again from its start. Its tokens, those of its prompt
    too where prompts may leave, then take the depths that they had the first time, so that its K/V
    and its answer stay the same.

    Args:
        runner: vLLM's, V1; its ``drafter`` is a ``RiverProposer`` where the engine drafts.
        config: scope, prefill, and what holds for requests that say nothing.
    """

    def __init__(self, runner: Any, config: RiverConfig) -> None:
        self._runner = runner
        self._config = config
        self._river = runner.get_model().river
        self._num_layers = self._river.num_layers
        self._sequence_prefill = config.prefill == "sequence"
        self._defaults = default_settings(config)
        self._custom = any(
            type(processor) not in BUILTIN_LOGITS_PROCESSORS
            for processor in runner.input_batch.logitsprocs.all
        )
        """Whether logits go through processors of the operator's, of which nothing is known."""
        self._requests: dict[str, Request] = {}
        self._step: list[Request] = []
        self._lines: list[Line] = []
        self._limit = config.max_rows
        # Reading a layer from the checkpoint never pays against running it in 4 bit.
        if self._limit == "auto" and config.deep == "fetch":
            self._limit = "all"
        self._usual = min(max(config.min_layers, USUAL_LAYERS), self._num_layers)
        self.costs = Costs()
        """What the passes cost, as far as anything asks for it."""

    def forget(self, request_ids: Collection[str]) -> None:
        """Drop what is kept for requests that have ended."""
        for request_id in request_ids:
            self._requests.pop(request_id, None)
        if self._config.drafts:
            self._runner.drafter.forget(request_ids)

    @property
    def exact(self) -> bool:
        """Whether a request of the step that has run last is to have stock vLLM's bits."""
        return not all(request.settings.may_draft for request in self._step)

    def table(self) -> StepTable:
        """The step that the runner has prepared."""
        runner = self._runner
        batch, starts = runner.input_batch, runner.query_start_loc.np
        spans = []
        self._step = []
        for index, request_id in enumerate(batch.req_ids):
            request, state = self._requests.get(request_id), runner.requests[request_id]
            position = int(batch.num_computed_tokens_cpu[index])
            if request is None:
                request = self._requests[request_id] = self._first_met(state)
            elif request.sent != state.num_prompt_tokens:
                request = self._requests[request_id] = self._goes_on(request, state, position)
            self._step.append(request)
            rows = int(starts[index + 1]) - int(starts[index])
            spans.append((position, rows))
        stay = not self._may_leave_now(spans)
        self._lines = [
            line
            for index, (position, rows) in enumerate(spans)
            for line in self._of_request(index, position, rows, stay)
        ]
        table = self._table_of(self._lines)
        table.exact = self.exact
        generating = all(
            position + rows > request.prompt
            for request, (position, rows) in zip(self._step, spans, strict=True)
        )
        if generating and table.free.all() and not any(r.every_logit for r in self._step):
            table.head = self._config.lm_head
        return table

    def depths(self, table: StepTable) -> list[int]:
        """After the pass: the signed depth of each request's last row (``river_vllm.depths``), in
        the batch's order."""
        found = [0] * len(self._step)
        for index, line in enumerate(self._lines):
            request = self._step[line.request]
            depth = int(table.exit_layer[index])
            generated = line.position + line.rows - 1 - request.prompt
            if request.may_leave:
                if generated >= len(request.depths):
                    request.depths.append(depth)
                elif generated < 0 and request.prompt_depths is not None:
                    request.prompt_depths[line.position : line.position + line.rows] = depth
            found[line.request] = signed_depth(depth, generated >= 0, line.held)
        return found

    def observe(self, table: StepTable, seconds: float) -> None:
        """Correct the costs by the seconds of a step, its logits included.

        Only decode steps count, and among those with exits only steps that left early.
        """
        if all(line.position >= self._step[line.request].prompt for line in self._lines):
            free = table.free
            if not free.any():
                kind: Kind = "backbone" if table.dense is None else "verify"
                self.costs.observe(kind, table.num_rows, seconds)
            elif free.all() and table.exit_layer.max() <= self._usual:
                self.costs.observe("river", table.num_rows, seconds)

    def measure(self) -> None:
        """Once the engine is warm and has its K/V cache: time whole passes, of the kinds that a
        decision goes by, unless an earlier start has."""
        runner, config = self._runner, self._config
        exits = RiverDrafter(runner, self._usual, config.lm_head)
        runs: dict[Kind, Callable[[int], object]] = {}
        if self._limit == "auto":
            runs["river"] = exits.idle_step
        if config.drafts and config.draft == "adaptive":
            runs["draft"] = runner.drafter.river.idle_step
            if self._river.dense is not None:
                verifying = RiverDrafter(runner, self._num_layers, "backbone", exact=False)
                runs["verify"] = verifying.idle_step
        if not runs:
            return
        requests = int(runner.max_num_reqs)
        rows = min(requests * (config.drafts + 1), int(runner.max_num_tokens))
        most = {kind: requests if kind == "river" else rows for kind in ("backbone", *runs)}
        self.costs = costs_of_start(runner, {"backbone": exits.idle_pass, **runs}, most)

    def info(self) -> dict[str, Any]:
        """What decisions go by, for operators."""
        config = self._config
        limit: int | str | None = self._limit
        if limit == "auto":
            limit = self.costs.max_rows
        return {
            **({"verify": self._drafts()} if config.drafts else {}),
            "crossover": {
                "max_rows": None if limit == "all" else limit,
                **self.costs.crossover(),
            },
            "costs": self.costs.describe(time.time()),
        }

    def _drafts(self) -> dict[str, Any]:
        config, listed = self._config, self._river.listed
        every = self._runner.model_config.get_vocab_size()
        return {
            "max_tokens": config.drafts,
            "adaptive": config.draft == "adaptive",
            "head_tokens": every if listed is None else len(listed),
        }

    def _first_met(self, state: Any) -> Request:
        """What is kept of a request: ``state`` is vLLM's ``CachedRequestState``."""
        params = state.sampling_params
        settings = settings_of(params, self._defaults)
        prompt: int = state.num_prompt_tokens
        may_leave = self._may_leave(settings)
        prompt_leaves = self._sequence_prefill and may_leave
        return Request(
            settings,
            prompt,
            prompt,
            may_leave,
            self._custom or (params is not None and needs_every_logit(params)),
            prompt_depths=np.zeros(prompt, dtype=np.int16) if prompt_leaves else None,
        )

    def _goes_on(self, before: Request, state: Any, computed: int) -> Request:
        """A session of streamed input, which takes what it has said into its next prompt: that is
        no prompt where it left, should it be computed again."""
        made = self._first_met(state)
        said = before.depths[: max(0, computed - before.sent)]
        if made.may_leave and (said or before.prompt_depths is not None):
            fresh = 0 if self._sequence_prefill else self._num_layers
            made.prompt_depths = np.full(made.prompt, fresh, dtype=np.int16)
            heard = before.prompt_depths
            made.prompt_depths[: before.sent] = self._num_layers if heard is None else heard
            made.prompt_depths[before.sent : before.sent + len(said)] = said
        return made

    def _table_of(self, lines: list[Line]) -> StepTable:
        """The table of these groups."""
        columns = zip(*lines, strict=True) if lines else [()] * len(Line._fields)
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
            device=self._runner.device,
        )

    def _may_leave_now(self, spans: list[tuple[int, int]]) -> bool:
        """Whether tokens may leave in this step: not where that would make it longer.

        With few rows a layer takes as long as reading its weights. A row that has to run the whole
        backbone reads them for all: where a step leaves together the others then ride along, and
        what they would do in 4 bit comes on top.
        """
        generated, whole = 0, True
        for request, (position, rows) in zip(self._step, spans, strict=True):
            prompt_rows = min(rows, max(0, request.prompt - position))
            generated += rows - prompt_rows
            whole &= request.may_leave
            whole &= not prompt_rows or self._sequence_prefill
        if self._config.scope == "step" and not whole:
            return False
        if self._limit == "all" or not generated:
            return True
        if self._limit != "auto":
            return generated <= self._limit
        return self.costs.choose(generated) if whole else self.costs.pays(generated)

    def _may_leave(self, settings: RiverSettings) -> bool:
        return settings.may_exit and settings.min_layers < self._num_layers

    def _of_request(self, index: int, position: int, rows: int, stay: bool) -> Iterator[Line]:
        """The groups of the batch's request ``index``, whose ``rows`` start at ``position``."""
        request = self._step[index]
        settings = request.settings
        if not request.may_leave:
            yield Line(index, position, rows)
            return
        end = position + rows
        if position < request.prompt:
            for depth, count in self._prompt_runs(request, position, min(end, request.prompt)):
                if stay and not depth:
                    yield Line(index, position, count)
                else:
                    yield self._line(index, position, count, settings, depth)
                position += count
        for token in range(position - request.prompt, end - request.prompt):
            at = request.prompt + token
            if token < len(request.depths):
                yield self._line(index, at, 1, settings, request.depths[token])
            elif stay:
                yield Line(index, at, 1, held=True)
            else:
                yield self._line(index, at, 1, settings, 0)

    def _line(
        self, index: int, position: int, rows: int, settings: RiverSettings, depth: int
    ) -> Line:
        """A group that leaves where it left before, or (0) by its own decision."""
        if depth:
            return Line(index, position, rows, -1.0, depth, replayed=True)
        return Line(index, position, rows, settings.threshold, settings.min_layers)

    def _prompt_runs(self, request: Request, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of prompt rows by the depth that they had, 0 where they may decide: one depth and a
        number of rows each."""
        if request.prompt_depths is None:
            yield self._num_layers, end - start
            return
        for depth, same in groupby(request.prompt_depths[start:end].tolist()):
            yield depth, sum(1 for _ in same)
