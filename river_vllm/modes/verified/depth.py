"""Decides how far to draft: while another token should save more time than it costs.

A step of R requests that drafts k tokens for each takes ``k`` draft passes and one verifying pass
over ``R (k + 1)`` rows. It yields ``1 + a + … + a^k`` tokens per request at acceptance rate a
(Leviathan et al. 2023, eq. 1). The least time per token over all k is the price of a token. A
further token of a draft is worth that price times its probability of acceptance, which the river's
confidence predicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from river_vllm.costs import Costs

GAIN = 1.03
"""Minimum predicted speed-up of drafting; less is within the noise of the timings."""


@dataclass(frozen=True, slots=True)
class Depth:
    """Decides how far one step drafts.

    Attributes:
        rows: of the verifying pass, without drafts.
        price: seconds that a token costs at the best depth; 0 where drafting does not pay.
        exact: whether a row of the verifying pass is to have stock vLLM's bits.
    """

    costs: Costs
    rows: int
    price: float
    exact: bool = False

    def worth_verifying(self, drafted: int, reach: float) -> bool:
        """Whether a drafted token that is accepted with probability ``reach`` pays for its row."""
        return reach * self.price > self._more(drafted, 1)

    def worth_drafting(self, drafted: int, reaches: Sequence[float]) -> bool:
        """Whether a draft pass pays for requests with these acceptance rates of the next token."""
        draft = self.costs.seconds("draft", len(reaches))
        return sum(reaches) * self.price > draft + self._more(drafted, len(reaches))

    def worth_guessing(self, requests: int, rows: int, rate: float, most: int) -> int:
        """How many guesses of one request pay for their rows in a draft pass: a right one saves
        the request's share of another pass.

        Args:
            requests: how many are in the pass.
            rows: of the pass without these guesses.
            rate: the probability that a guess is right.
            most: how many guesses there are.
        """
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
    return Depth(FREE, requests, math.inf)


def guessing_depth(costs: Costs, requests: int, exact: bool = False) -> Depth:
    """The depth at which a token is worth its time in a step without drafts."""
    price = costs.verifying(requests, exact) / requests if requests else 0.0
    return Depth(costs, requests, price, exact)


def best_depth(
    costs: Costs, rates: Sequence[float], limits: Sequence[int], exact: bool = False
) -> Depth:
    """The depth with the least time per token, if all requests draft equally many tokens.

    Args:
        rates: acceptance rate of each request of the step.
        limits: the most tokens that each may draft.
        exact: whether a row of the next step is to have stock vLLM's bits.
    """
    requests = len(rates)
    a, limit = np.asarray(rates), np.asarray(limits)
    seconds, tokens = costs.verifying(requests, exact) if requests else 0.0, float(requests)
    without = best = seconds / tokens if requests else 0.0
    draft_seconds, drafted = 0.0, 0
    for level in range(1, int(limit.max(initial=0)) + 1):
        going = limit >= level
        count = int(going.sum())
        draft_seconds += costs.seconds("draft", count)
        drafted += count
        tokens += float((a[going] ** level).sum())
        verifying = costs.verifying(requests + drafted, exact)
        best = min(best, (draft_seconds + verifying) / tokens)
    return Depth(costs, requests, best if best * GAIN < without else 0.0, exact)
