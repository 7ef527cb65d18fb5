"""Acceptance rates of drafted tokens and of guesses, learnt from verified ones.

Every rate starts at a prior, moves with each verified token, and fades back towards its prior with
each step. So a draft that has become unlikely is tried again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from river_vllm.compat import init_logger
from river_vllm.modes.verified import RecentDrafts

logger = init_logger("vllm.river")

PRIOR, GUESS_PRIOR = 0.85, 0.5
"""Acceptance rates of drafts and of guesses before any was verified."""
EDGES = np.array([0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
CONFIDENCE_PRIOR = (0.4, 0.6, 0.75, 0.85, 0.92, 0.96, 0.98, 0.995)
"""As ``PRIOR``, by the river's probability of its token: one for each interval of ``EDGES``."""

WEIGHT = 2.0
"""Verified tokens that a prior counts as."""
MEMORY = 0.98
"""Factor by which a count decays with each token that it takes."""
FADE = 0.99
"""Factor by which every count decays with each step that could draft."""

LEAST_KEPT = 0.2
"""Acceptance rate of recent drafts below which something is wrong with the river."""


@dataclass(slots=True)
class _Count:
    kept: float = 0.0
    tried: float = 0.0

    def add(self, kept: float) -> None:
        self.kept = self.kept * MEMORY + kept
        self.tried = self.tried * MEMORY + 1.0

    def fade(self) -> None:
        self.kept *= FADE
        self.tried *= FADE

    def rate(self, prior: float) -> float:
        return (self.kept + WEIGHT * prior) / (self.tried + WEIGHT)


class Acceptance:
    """Rates of each request, of all requests, and by the river's confidence."""

    def __init__(self) -> None:
        self._all = _Count()
        self._requests: dict[str, _Count] = {}
        self._guesses: dict[str, _Count] = {}
        self._by_confidence = [_Count() for _ in CONFIDENCE_PRIOR]
        self._recent = RecentDrafts()
        self._warned = False

    def rate(self, request_id: str) -> float:
        """The acceptance rate of the request's next drafted token, if those before are accepted."""
        return self._requests.get(request_id, _Count()).rate(self._all.rate(PRIOR))

    def likelihood(self, confidence: float) -> float:
        """The acceptance rate of a greedy token to which the river gives this probability."""
        place = int(np.searchsorted(EDGES, confidence, side="right"))
        return self._by_confidence[place].rate(CONFIDENCE_PRIOR[place])

    def guess_rate(self, request_id: str) -> float:
        """The probability that the request's next guess is right, if all before it are."""
        return self._guesses.get(request_id, _Count()).rate(GUESS_PRIOR)

    def fade(self) -> None:
        """Let every count decay, before a step that could draft."""
        counts = (*self._requests.values(), *self._guesses.values(), *self._by_confidence)
        for count in (self._all, *counts):
            count.fade()

    def verified(self, request_id: str, confidences: Sequence[float | None], kept: int) -> None:
        """Learn from a request's draft that was verified.

        Args:
            confidences: the river's confidence in each verified token, in order; None for a sampled
                token, whose acceptance does not depend on it.
            kept: how many tokens were accepted; the next one, if any, was rejected.
        """
        for index, confidence in enumerate(confidences[: kept + 1]):
            stayed = index < kept
            self._add(request_id, stayed)
            if confidence is not None:
                place = int(np.searchsorted(EDGES, confidence, side="right"))
                self._by_confidence[place].add(stayed)
        share = self._recent.add(len(confidences), kept)
        if share is not None and share < LEAST_KEPT and not self._warned:
            self._warned = True
            logger.warning(
                "River: the backbone keeps only %.0f %% of the drafted tokens, so answers come no "
                "faster than stock vLLM's. Check that the checkpoint is whole, that the tokenizer "
                "is this model's, and that the weights of --river-weights were made from it.",
                100 * share,
            )

    def dropped(self, request_id: str, likelihood: float) -> None:
        """Learn from a draft whose first token was too unlikely to be verified."""
        self._add(request_id, likelihood)

    def guessed(self, request_id: str, tried: int, right: int) -> None:
        """Learn how many of the guesses in one draft pass were right."""
        own = self._guesses.setdefault(request_id, _Count())
        for index in range(min(tried, right + 1)):
            own.add(index < right)

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop requests that have ended."""
        for request_id in request_ids:
            self._requests.pop(request_id, None)
            self._guesses.pop(request_id, None)

    def _add(self, request_id: str, kept: float) -> None:
        self._all.add(kept)
        self._requests.setdefault(request_id, _Count()).add(kept)
