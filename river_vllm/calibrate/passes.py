"""Teacher-forced passes over known texts, through a vLLM engine of this process.

A text that the backbone has written is one prompt whose tail counts as generated
(``ForcedRequests``). A forward pass runs its rows layer by layer. Each row writes its K/V on its
own path before later rows attend to it. So one pass gives the exit layers, K/V and logits that
decoding this text with the same settings would give.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from river_vllm.config import river_config_of
from river_vllm.modes.exit import Exits
from river_vllm.request import EXTRA_ARGS_KEY, RiverSettings, default_settings
from river_vllm.step.requests import Request, Requests
from river_vllm.step.table import Head, Pass

Token = tuple[int, int]
"""Number of the text and position."""
TEACHER_KEY = "river_teacher"
"""Key in ``SamplingParams.extra_args`` for the number of a text and where its answer starts."""
LOGIT_ROWS = 256
"""Rows whose logits over the vocabulary are computed at a time."""
NO_EXIT = 1.0 - 1e-9
"""A τ below 1 that no similarity exceeds (as float32 it is 1.0). Rows of the backbone's own pass
are then routed and so observed, but none leaves."""

_salts = itertools.count()


@dataclass(frozen=True, slots=True)
class Policy:
    """When a token leaves: τ and the fewest backbone layers, as in ``RiverConfig``."""

    threshold: float
    min_layers: int

    def settings(self) -> RiverSettings:
        return RiverSettings(True, self.threshold, self.min_layers)

    def exit_layers(self, similarity: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
        """Exit layers of tokens with these similarities, L where a token never leaves.

        The effect of an exit's K/V on the similarities of later tokens is left out.

        Args:
            similarity: s after 1 … L−1 layers on the backbone, float32 ``[tokens, L − 1]``.
        """
        layers = similarity.shape[1] + 1
        if self.threshold <= -1.0:
            return np.full(len(similarity), self.min_layers, dtype=np.int16)
        leaves = similarity > np.float32(self.threshold)
        leaves[:, : self.min_layers - 1] = False
        return np.where(leaves.any(axis=1), leaves.argmax(axis=1) + 1, layers).astype(np.int16)


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and its answer, of the backbone or given, as tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def forced(self) -> int:
        """Answer tokens that a decode step would have read: all but the last."""
        return max(0, len(self.answer) - 1)


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
        assert done is not None, "no measurement was begun"
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


class TeacherForcedEngine:
    """Answers prompts and runs passes over texts.

    Args:
        llm: vLLM's ``LLM`` with a River model, its engine core in this process.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._observer: Observer = llm.collective_rpc(Observer)[0]

    def answers(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Text]:
        """The backbone's greedy answers, at most ``tokens`` long; an end of text counts."""
        params = _greedy(tokens, {EXTRA_ARGS_KEY: {"enabled": False}})
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return [
            Text(tuple(prompt), tuple(output.outputs[0].token_ids))
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    def run(self, policy: Policy | None, texts: Sequence[Text], first: int = 0) -> Measured:
        """One pass over ``texts``.

        Args:
            policy: when tokens leave; None for the backbone's pass, which has to come first.
            first: number of the first text.
        """
        settings = (policy or Policy(NO_EXIT, 1)).settings().as_extra_arg()
        inputs, params = [], []
        for number, text in enumerate(texts, first):
            tokens = [*text.prompt, *text.answer[: text.forced]]
            # A salt of its own: every row of a measurement has to be computed.
            inputs.append({"prompt_token_ids": tokens, "cache_salt": str(next(_salts))})
            teacher = {"sequence": number, "answer_start": len(text.prompt)}
            params.append(_greedy(1, {EXTRA_ARGS_KEY: settings, TEACHER_KEY: teacher}))
        self._observer.begin(reference=policy is None)
        self._llm.generate(inputs, params, use_tqdm=False)
        return self._observer.finish()


def _greedy(tokens: int, extra_args: dict[str, Any]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0.0, max_tokens=tokens, detokenize=False, extra_args=extra_args
    )
