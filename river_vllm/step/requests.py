"""A worker's record of each request, from its first step to its last."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from river_vllm.request import RiverSettings, settings_of


@dataclass(slots=True)
class Request:
    """A request in the worker.

    Attributes:
        settings, may_exit, may_draft: of its ``river`` field.
        sent: number of tokens that it came with.
        prompt: how many of them are its prompt; in a calibration, a known answer follows.
        params: its ``SamplingParams``.
        depths: exit layer of each generated token, in order.
        prompt_depths: exit layer of each prompt token, 0 where none is known; None where no prompt
            token has left.
    """

    settings: RiverSettings
    may_exit: bool
    may_draft: bool
    sent: int
    prompt: int
    params: Any
    depths: list[int] = field(default_factory=list)
    prompt_depths: npt.NDArray[np.int16] | None = None


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A request's rows in one step; ``start`` is the position of the first in its sequence."""

    request: Request
    start: int
    rows: int

    @property
    def prompt_rows(self) -> int:
        """How many of the rows are prompt tokens."""
        return min(self.rows, max(0, self.request.prompt - self.start))


class Requests:
    """The requests of a worker with runner V1; ``defaults`` hold for those without settings.

    The backbone answers all of them if the river is not ``used``.
    """

    def __init__(self, runner: Any, defaults: RiverSettings, used: bool = True) -> None:
        self._runner = runner
        self._defaults = defaults
        self._used = used
        self._known: dict[str, Request] = {}

    def __getitem__(self, request_id: str) -> Request:
        return self._known[request_id]

    def forget(self, request_ids: Collection[str]) -> None:
        """Drop requests that have ended."""
        for request_id in request_ids:
            self._known.pop(request_id, None)

    def step(self) -> list[Scheduled]:
        """The rows of the step that the runner has prepared, by request, in the batch's order."""
        batch, starts = self._runner.input_batch, self._runner.query_start_loc.np
        found = []
        for index, request_id in enumerate(batch.req_ids):
            request, state = self._known.get(request_id), self._runner.requests[request_id]
            start = int(batch.num_computed_tokens_cpu[index])
            if request is None or request.sent != state.num_prompt_tokens:
                continued = request and self.continued(request, state, start)
                request = self._known[request_id] = continued or self.first_met(state)
            found.append(Scheduled(request, start, int(starts[index + 1] - starts[index])))
        return found

    def first_met(self, state: Any) -> Request:
        """A request that is new to the worker; ``state`` is vLLM's ``CachedRequestState``."""
        params, prompt = state.sampling_params, state.num_prompt_tokens
        settings = settings_of(params, self._defaults)
        exits, drafts = settings.may_exit and self._used, settings.may_draft and self._used
        return Request(settings, exits, drafts, prompt, prompt, params)

    def continued(self, before: Request, state: Any, computed: int) -> Request:
        """A request with streamed input, whose earlier output has become part of its prompt.

        If that part is computed again, its tokens leave after the same layers.
        """
        request = self.first_met(state)
        said = before.depths[: max(0, computed - before.sent)]
        if said or before.prompt_depths is not None:
            request.prompt_depths = np.zeros(request.prompt, dtype=np.int16)
            if before.prompt_depths is not None:
                request.prompt_depths[: before.sent] = before.prompt_depths
            request.prompt_depths[before.sent : before.sent + len(said)] = said
        return request
