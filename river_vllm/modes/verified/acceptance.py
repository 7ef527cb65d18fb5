"""Acceptance rates of drafted tokens and of guesses, learnt from those that were checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

PRIOR, PRIOR_WEIGHT = 0.85, 8.0
"""The rate that is assumed of drafts before any was verified, and how many tokens it counts as."""
SHARED_MEMORY, OWN_MEMORY = 0.998, 0.97
"""Factor by which a count decays with each verified token: of all requests, and of one."""
REST_MEMORY = 0.95
"""The same with each step without a draft, so that a request is tried again."""
OWN_WEIGHT = 4.0
"""Tokens that the rate over all requests counts as, in a request's own."""

GUESS_PRIOR, GUESS_WEIGHT = 0.5, 4.0
"""As ``PRIOR``, of guesses."""

EDGES = np.array([0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
CONFIDENCE_PRIOR = (0.4, 0.6, 0.75, 0.85, 0.92, 0.96, 0.98, 0.995)
"""As ``PRIOR``, by the river's probability of its token: one for each interval of ``EDGES``."""
CONFIDENCE_WEIGHT = 10.0


@dataclass(slots=True)
class _Count:
    kept: float = 0.0
    tried: float = 0.0

    def add(self, kept: bool, memory: float) -> None:
        self.kept = self.kept * memory + kept
        self.tried = self.tried * memory + 1.0

    def fade(self, memory: float) -> None:
        self.kept *= memory
        self.tried *= memory

    def rate(self, prior: float, weight: float) -> float:
        return (self.kept + weight * prior) / (self.tried + weight)


class Acceptance:
    """Rates of each request, of all requests, and by the river's confidence."""

    def __init__(self) -> None:
        self._all = _Count()
        self._requests: dict[str, _Count] = {}
        self._guesses: dict[str, _Count] = {}
        self._by_confidence = [_Count() for _ in CONFIDENCE_PRIOR]

    def rate(self, request_id: str) -> float:
        """The probability that the request's next drafted token is accepted, if those before it
        are."""
        shared = self._all.rate(PRIOR, PRIOR_WEIGHT)
        own = self._requests.get(request_id)
        return shared if own is None else own.rate(shared, OWN_WEIGHT)

    def likelihood(self, confidence: float) -> float:
        """The probability that the backbone accepts a greedy token of this probability in the
        river."""
        place = int(np.searchsorted(EDGES, confidence, side="right"))
        return self._by_confidence[place].rate(CONFIDENCE_PRIOR[place], CONFIDENCE_WEIGHT)

    def verified(self, request_id: str, confidences: Sequence[float | None], kept: int) -> None:
        """Learn from a request's draft that was verified.

        Args:
            confidences: the river's, of each token that was verified, in order; None where the
                token was sampled, since acceptance then does not go by its probability.
            kept: how many of them were accepted; the one after them was the first rejected.
        """
        own = self._requests.setdefault(request_id, _Count())
        for index, confidence in enumerate(confidences[: kept + 1]):
            stayed = index < kept
            own.add(stayed, OWN_MEMORY)
            self._all.add(stayed, SHARED_MEMORY)
            if confidence is not None:
                place = int(np.searchsorted(EDGES, confidence, side="right"))
                self._by_confidence[place].add(stayed, SHARED_MEMORY)

    def guess_rate(self, request_id: str) -> float:
        """The probability that the request's next guess is right, if all before it are."""
        own = self._guesses.get(request_id)
        return GUESS_PRIOR if own is None else own.rate(GUESS_PRIOR, GUESS_WEIGHT)

    def guessed(self, request_id: str, tried: int, right: int) -> None:
        """Learn how many of the guesses in one draft pass were right. Where there were some and
        none was tried, the count decays, so that they are tried again."""
        own = self._guesses.setdefault(request_id, _Count())
        if not tried:
            own.fade(REST_MEMORY)
        for index in range(min(tried, right + 1)):
            own.add(index < right, OWN_MEMORY)

    def rested(self, request_id: str) -> None:
        """The request went a step without a draft: its counts decay."""
        self._all.fade(SHARED_MEMORY)
        own = self._requests.get(request_id)
        if own is not None:
            own.fade(REST_MEMORY)

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop requests that have ended."""
        for request_id in request_ids:
            self._requests.pop(request_id, None)
            self._guesses.pop(request_id, None)
