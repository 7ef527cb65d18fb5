"""Everything that an evaluation was asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from server.bench.body import RESERVED
from server.bench.endpoint import Api
from server.bench.settings import Target
from server.evaluate.data import Selection
from server.evaluate.problem import Prompt, Task

SIDES = ("A", "B")
"""A is the reference; an evaluation that compares nothing has A alone."""

OWN_FIELDS = RESERVED | {"temperature", "top_p", "seed", "stop", "return_token_ids"}
"""Fields of a request that have an option or are set here, so ``--extra-body`` may not."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are generated, on both sides alike."""

    api: Api = "completions"
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float | None = None
    seed: int = 0
    """Of sampled answers; the problem's place is added, so that no two problems share one."""
    token_ids: bool = True
    """Ask for the tokens of the answer: vLLM's ``return_token_ids``."""
    extra: Mapping[str, Any] | None = None

    def body(
        self,
        model: str,
        prompt: Prompt,
        index: int,
        stop: tuple[str, ...],
        river: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """The request that asks problem ``index``."""
        body: dict[str, Any] = {"model": model}
        body["messages" if self.api == "chat" else "prompt"] = prompt
        body |= {"max_tokens": self.max_tokens, "temperature": self.temperature, "stream": False}
        if self.temperature > 0:
            body["seed"] = self.seed + index
            if self.top_p is not None:
                body["top_p"] = self.top_p
        if stop:
            body["stop"] = list(stop)
        if self.token_ids:
            body["return_token_ids"] = True
        if river is not None:
            body["river"] = dict(river)
        return body | dict(self.extra or {})


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """One or two sides, the same problems."""

    task: Task
    selection: Selection
    sides: Mapping[str, Target]
    sampling: Sampling
    concurrency: int
    timeout: float
    """Seconds for a whole request."""
    confidence: float = 0.95
    max_loss: float | None = None
    """Points of accuracy that B may lose against A."""

    @property
    def stop(self) -> tuple[str, ...]:
        return tuple(self.task.stop(self.sampling.api))

    def describe(self) -> dict[str, Any]:
        """For reports."""
        shots_file = self.selection.shots_file
        sampling = asdict(self.sampling)
        sampling["extra"] = dict(self.sampling.extra) if self.sampling.extra is not None else None
        return sampling | {
            "shots": len(self.selection.shots),
            "shots_file": shots_file.describe() if shots_file else None,
            "stop": list(self.stop),
            "concurrency": self.concurrency,
            "timeout_s": self.timeout,
        }
