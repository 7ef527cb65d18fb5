"""Everything that a run, or a comparison, was asked to do."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from server.bench.arrivals import ArrivalKind
from server.bench.body import BodyOptions, build_body
from server.bench.datasets import Dataset
from server.bench.endpoint import Endpoint
from server.bench.load import Level, Limits
from server.bench.measure.slo import Slo
from server.bench.request import Planned


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint before it has been asked for its model."""

    base: str
    model: str | None
    key: str | None
    river: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """What every request of a run shares."""

    dataset: Dataset
    body: BodyOptions
    seed: int
    timeout: float
    """Seconds for a whole request."""
    fixed_lengths: bool
    """Output lengths were asked for by the user, so that short answers are worth a warning."""
    cancel_rate: float = 0.0
    """Share of requests that the client leaves in mid-stream."""
    cancel_after: int = 1

    def plan(
        self,
        endpoint: Endpoint,
        part: str,
        index: int,
        side: str = "",
        river: Mapping[str, Any] | None = None,
        at_most: int | None = None,
    ) -> Planned:
        """The request ``index`` of ``part``; the same seed makes the same request.

        Args:
            side: of a comparison: two sides ask the same, but share no prefix by its salt.
            river: the side's own ``river`` field.
            at_most: output tokens, where fewer than planned will do.
        """
        prompt = self.dataset.prompt(index, part)
        if at_most is not None:
            prompt = replace(prompt, max_tokens=min(prompt.max_tokens, at_most))
        salt = f"{self.seed}-{part}-{index}-{side}".replace("/", "-")
        body = build_body(self.body, endpoint.model, prompt, salt, river)
        leaves = random.Random(f"{self.seed}/cancel/{part}/{index}").random() < self.cancel_rate
        return Planned(
            index=index,
            url=endpoint.url(self.body.api),
            headers=endpoint.headers,
            body=body,
            timeout=self.timeout,
            cancel_after=self.cancel_after if leaves else None,
        )


@dataclass(frozen=True, slots=True)
class RunSettings:
    """One endpoint under one or several loads."""

    target: Target
    requests: RequestSettings
    levels: tuple[Level, ...]
    limits: Limits
    warmup: int
    arrivals: ArrivalKind = "poisson"
    slos: tuple[Slo, ...] = ()
    max_failure_share: float = 1.0
    """A level with a larger share of failures makes the exit status 1."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The least median ratio of a figure with which a comparison succeeds."""

    metric: str
    least: float


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """Two endpoints asked the same in turn."""

    a: Target
    b: Target
    requests: RequestSettings
    concurrency: int
    block: int
    """Requests to one side in a round."""
    rounds: int
    warmup: int
    """Requests to each side before the first round."""
    wake: int = 0
    """Short requests to a side before each of its turns."""
    confidence: float = 0.95
    gates: tuple[Gate, ...] = ()
