"""Decides how far to draft: while another token should save more time than it costs.

A step of R requests that drafts k tokens for each takes ``k`` draft passes and one verifying pass
over ``R (k + 1)`` rows. It yields ``1 + a + … + a^k`` tokens per request at acceptance rate a
(Leviathan et al. 2023, eq. 1). The least time per token over all k is the price of a token. A
further token of a draft is worth that price times its probability of acceptance, which the river's
confidence predicts.

Acceptance rates are learnt from verified tokens. Every rate starts at a prior, moves with each
verified token, and fades back towards its prior with each step. So a draft that has become unlikely
is tried again.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from river_vllm.compat import init_logger
from river_vllm.costs import Costs
from river_vllm.modes.verified import RecentDrafts

logger = init_logger("vllm.river")

GAIN = 1.03
"""Minimum predicted speed-up of drafting; less is within the noise of the timings."""

PRIOR = 0.85
"""Acceptance rate of drafts before any was verified."""
MATCHES = (3, 5, 8, 16)
GUESS_PRIOR = (0.5, 0.6, 0.75, 0.8, 0.95)
"""The same of guesses, by the tokens that were compared: one for each interval of ``MATCHES``."""
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
        self._guesses: dict[str, list[_Count]] = {}
        self._found: dict[str, _Count] = {}
        self._by_confidence = [_Count() for _ in CONFIDENCE_PRIOR]
        self._recent = RecentDrafts()
        self._warned = False

    def rate(self, request_id: str) -> float:
        """The acceptance rate of the request's next drafted token, if those before are accepted."""
        return self._requests.get(request_id, _Count()).rate(self._all.rate(PRIOR))

    def likelihood(self, confidence: float) -> float:
        """The acceptance rate of a greedy token to which the river gives this probability."""
        place = _interval(confidence)
        return self._by_confidence[place].rate(CONFIDENCE_PRIOR[place])

    def guess_rate(self, request_id: str, match: int) -> float:
        """The probability that the request's next guess is right, if all before it are and
        ``match`` tokens were compared."""
        place = bisect_right(MATCHES, match)
        own = self._guesses.get(request_id)
        return GUESS_PRIOR[place] if own is None else own[place].rate(GUESS_PRIOR[place])

    def guesses_found(self, request_id: str) -> float:
        """How many right guesses a draft pass of the request has on average."""
        return self._found.get(request_id, _Count()).rate(0.0)

    def fade(self) -> None:
        """Let every count decay, before a step that could draft."""
        of_all = (self._all, *self._by_confidence)
        of_one = (*self._requests.values(), *self._found.values())
        for count in chain(of_all, of_one, *self._guesses.values()):
            count.fade()

    def verified(self, request_id: str, confidences: Sequence[float | None], kept: int) -> None:
        """Learn from a verified draft: ``kept`` tokens were accepted, and the next one rejected.

        ``confidences`` has the river's confidence in each verified token; None for a sampled one,
        whose acceptance does not depend on it.
        """
        for index, confidence in enumerate(confidences[: kept + 1]):
            self.learn(request_id, index < kept)
            if confidence is not None:
                self._by_confidence[_interval(confidence)].add(index < kept)
        share = self._recent.add(len(confidences), kept)
        if share is not None and share < LEAST_KEPT and not self._warned:
            self._warned = True
            logger.warning(
                "River: the backbone keeps only %.0f %% of the drafted tokens, so answers come no "
                "faster than stock vLLM's. Check that the checkpoint is whole, that the tokenizer "
                "is this model's, and that the weights of --river-weights were made from it.",
                100 * share,
            )

    def learn(self, request_id: str, kept: float) -> None:
        """Learn whether a token was kept, 0 or 1, or how likely one is that was not verified."""
        self._all.add(kept)
        self._requests.setdefault(request_id, _Count()).add(kept)

    def passed(self, request_id: str, match: int, tried: int, right: int) -> None:
        """Learn how many of the ``tried`` guesses in a draft pass of the request were right."""
        self._found.setdefault(request_id, _Count()).add(right)
        self.guessed(request_id, match, tried, right)

    def guessed(self, request_id: str, match: int, tried: int, right: int) -> None:
        """Learn how many of the guesses in one pass were right."""
        own = self._guesses.setdefault(request_id, [_Count() for _ in GUESS_PRIOR])
        for index in range(min(tried, right + 1)):
            own[bisect_right(MATCHES, match)].add(index < right)

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop requests that have ended."""
        for request_id in request_ids:
            self._requests.pop(request_id, None)
            self._guesses.pop(request_id, None)
            self._found.pop(request_id, None)


def _interval(confidence: float) -> int:
    return int(np.searchsorted(EDGES, confidence, side="right"))


@dataclass(frozen=True, slots=True)
class Depth:
    """Decides how far one step drafts.

    Attributes:
        rows: of the verifying pass, without drafts.
        price: seconds that a token costs at the best depth; 0 where drafting does not pay.
        exact: whether a row of the verifying pass is to have stock vLLM's bits.
        passes: draft passes of the best depth.
    """

    costs: Costs
    rows: int
    price: float
    exact: bool = False
    passes: int = 0

    def with_drafts(self, drafted: int) -> float:
        """Seconds of a verifying pass over this many drafted tokens."""
        return self.costs.verifying(self.rows + drafted, self.exact)

    def worth_verifying(self, drafted: int, reach: float) -> bool:
        """Whether a drafted token that is accepted with probability ``reach`` pays for its row."""
        return reach * self.price > self._more(drafted, 1)

    def worth_drafting(self, drafted: int, reaches: Sequence[float]) -> bool:
        """Whether a draft pass pays for requests with these acceptance rates of the next token."""
        draft = self.costs.seconds("draft", len(reaches))
        return sum(reaches) * self.price > draft + self._more(drafted, len(reaches))

    def worth_guessing(self, requests: int, rows: int, rate: float, most: int) -> int:
        """How many of a request's ``most`` guesses pay for their rows in a draft pass, which has
        ``rows`` without them. A right one, at ``rate``, saves the request's share of a pass."""
        seconds = self.costs.seconds
        share, reach = seconds("draft", requests) / requests, rate
        for count in range(most):
            if reach * share <= seconds("draft", rows + count + 1) - seconds("draft", rows + count):
                return count
            reach *= rate
        return most

    def _more(self, drafted: int, added: int) -> float:
        """Seconds by which ``added`` rows make the verifying pass longer."""
        rows, seconds = self.rows + drafted, self.costs.verifying
        return seconds(rows + added, self.exact) - seconds(rows, self.exact)


FREE = Costs.fixed({"backbone": {1: 0.0}, "draft": {1: 1.0, 1 << 16: 1.0}})
"""Costs with which a row takes no time, and every draft pass the same time."""


def fixed_depth(requests: int) -> Depth:
    """The depth at which each request drafts as many tokens as it may."""
    return Depth(FREE, requests, math.inf, passes=sys.maxsize)


def guessing_depth(costs: Costs, requests: int, exact: bool = False) -> Depth:
    """The depth at which a token is worth its time in a step without drafts."""
    price = costs.verifying(requests, exact) / requests if requests else 0.0
    return Depth(costs, requests, price, exact)


def best_depth(
    costs: Costs,
    rates: Sequence[float],
    limits: Sequence[int],
    exact: bool = False,
    found: float = 0.0,
) -> Depth:
    """The depth with the least time per token, if all requests draft equally many tokens.

    Args:
        rates: acceptance rate of each request.
        limits: the most tokens that each may draft.
        exact: whether a row of the verifying pass is to have stock vLLM's bits.
        found: right guesses in a request's draft pass; a pass brings a token more than that.
    """
    requests = len(rates)
    a, limit = np.asarray(rates), np.asarray(limits)
    seconds, tokens = costs.verifying(requests, exact) if requests else 0.0, float(requests)
    without = best = seconds / tokens if requests else 0.0
    draft_seconds, drafted, passes = 0.0, 0, 0
    for level in range(1, int(limit.max(initial=0)) + 1):
        going = limit >= level
        count = int(going.sum())
        draft_seconds += costs.seconds("draft", count) / (1.0 + found)
        drafted += count
        tokens += float((a[going] ** level).sum())
        verifying = costs.verifying(requests + drafted, exact)
        if (price := (draft_seconds + verifying) / tokens) < best:
            best, passes = price, level
    return Depth(costs, requests, best if best * GAIN < without else 0.0, exact, passes)
