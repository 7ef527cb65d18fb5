"""The worker's side of a measurement: treats the answer at the end of a prompt as if it had been
generated, and compares each of its tokens with the backbone's."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from river_vllm.config import river_config_of
from river_vllm.modes.exit.policy import Exits
from river_vllm.request import default_settings
from river_vllm.step.requests import Request, Requests
from river_vllm.step.table import Head, Pass

Token = tuple[int, int]
"""Number of the text and position."""
TEACHER_KEY = "river_teacher"
"""Key in ``SamplingParams.extra_args`` for the number of a text and where its answer starts."""

LOGIT_ROWS = 256
"""Rows whose logits over the vocabulary are computed at a time."""


@dataclass(slots=True)
class ForcedRequest(Request):
    """A request that is a known text."""

    sequence: int = -1
    """The text's number."""


class ForcedRequests(Requests):
    """Treats the answer at the end of a prompt as if it had been generated."""

    def first_met(self, state: Any) -> Request:
        request = super().first_met(state)
        teacher = (state.sampling_params.extra_args or {}).get(TEACHER_KEY)
        if teacher is None:
            return request
        known = {field.name: getattr(request, field.name) for field in fields(request)}
        known["prompt"] = min(request.prompt, teacher["answer_start"])
        return ForcedRequest(**known, sequence=teacher["sequence"])


@dataclass(slots=True)
class Measured:
    """The results of a pass, one entry per teacher-forced token in the order of computation.

    Attributes:
        tokens: text and position of each, int32 ``[tokens, 2]``.
        exit_layer: backbone layers that it ran, int16.
        agrees: whether its likeliest next token is the backbone's.
        similarity: of the backbone's pass: s after 1 … L−1 layers, float32 ``[tokens, L − 1]``.
    """

    tokens: npt.NDArray[np.int32]
    exit_layer: npt.NDArray[np.int16]
    agrees: npt.NDArray[np.bool_]
    similarity: npt.NDArray[np.float32] | None = None


@dataclass(slots=True)
class _Pass:
    reference: bool
    tokens: list[Token] = field(default_factory=list)
    exit_layer: list[int] = field(default_factory=list)
    agrees: list[bool] = field(default_factory=list)
    similarity: list[torch.Tensor] = field(default_factory=list)


class Observer:
    """Looks at the passes of a worker; one for all measurements over a set of texts.

    Args:
        worker: vLLM's worker, whose model has a river.
    """

    def __init__(self, worker: Any) -> None:
        runner = worker.model_runner
        config = river_config_of(worker.vllm_config)
        self._model = runner.get_model()
        self._exits: Exits = runner.river_exits
        self._head: Head = config.lm_head
        runner.river_requests = ForcedRequests(runner, default_settings(config))
        self._greedy: dict[Token, int] = {}
        self._pass: _Pass | None = None
        self._values: list[torch.Tensor] = []
        self._model.river.observer = self

    def begin(self, reference: bool) -> None:
        """Start a measurement; the first over a text has to be the backbone's (``reference``)."""
        self._pass = _Pass(reference)

    def similarity(self, layers_run: int, values: torch.Tensor) -> None:
        """Keep a pass's similarities (``model.forward.Observer``)."""
        self._values.append(values)

    def ran(self, done: Pass, hidden: torch.Tensor) -> None:
        """Compare a pass with the backbone's (``model.forward.Observer``)."""
        values, self._values = self._values, []
        current, found = self._pass, self._forced_tokens()
        if current is None or not found:
            return
        if current.reference:
            current.similarity.append(torch.stack(values, dim=1))
        table = done.table
        groups, tokens = map(list, zip(*found, strict=True))
        rows = torch.tensor((np.cumsum(table.rows) - table.rows)[groups], device=hidden.device)
        current.tokens += tokens
        current.exit_layer += table.exit_layer[groups].tolist()
        head, done.head = done.head, "backbone" if current.reference else self._head
        greedy: list[int] = []
        for part in rows.split(LOGIT_ROWS):
            greedy += self._model.compute_logits(hidden[part]).argmax(dim=-1).tolist()
        done.head = head
        if current.reference:
            self._greedy.update(zip(tokens, greedy, strict=True))
        current.agrees += [self._greedy[t] == own for t, own in zip(tokens, greedy, strict=True)]

    def finish(self) -> Measured:
        """The measurement that was begun."""
        done, self._pass = self._pass, None
        if done is None:
            raise RuntimeError("no measurement was begun")
        return Measured(
            tokens=np.array(done.tokens, dtype=np.int32).reshape(-1, 2),
            exit_layer=np.array(done.exit_layer, dtype=np.int16),
            agrees=np.array(done.agrees, dtype=np.bool_),
            similarity=torch.cat(done.similarity).cpu().numpy() if done.similarity else None,
        )

    def _forced_tokens(self) -> list[tuple[int, Token]]:
        """Groups of the step that are tokens of a text, each with its text and position."""
        return [
            (group, (request.sequence, line.start))
            for group, (line, request) in enumerate(self._exits.groups())
            if isinstance(request, ForcedRequest)
            and line.start >= request.prompt
            and request.settings.may_exit
            and not line.replayed
        ]
