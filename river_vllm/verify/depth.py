"""How far to draft: as long as a token more is expected to save more time than it costs.

A step of R requests that drafts k tokens for each costs ``k`` draft steps and one verifying pass
over ``R (k + 1)`` rows, and brings ``1 + a + … + a^k`` tokens per request at acceptance a
(Leviathan et al. 2023, eq. 1). The best k by average fixes the price of a token, seconds a token;
inside a draft each further token is then weighed at that price, with what the river's confidence
in the tokens before it says about their staying.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from river_vllm.costs import Costs

GAIN = 1.03
"""Drafting must promise this much over not drafting: a prediction within noise is no gain."""


@dataclass(frozen=True, slots=True)
class Depth:
    """What holds while one step drafts.

    Attributes:
        rows: rows of the verifying pass before any draft.
        price: seconds that a token costs at the best depth; 0 where drafting does not pay.
    """

    costs: Costs
    rows: int
    price: float

    def worth_verifying(self, drafted: int, reach: float) -> bool:
        """Whether a drafted token that stays with probability ``reach`` pays for its row."""
        return reach * self.price > self._more(drafted, 1)

    def worth_drafting(self, drafted: int, reaches: Sequence[float]) -> bool:
        """Whether a draft step for requests whose next token stays so likely pays."""
        draft = self.costs.seconds("draft", len(reaches))
        return sum(reaches) * self.price > draft + self._more(drafted, len(reaches))

    def worth_guessing(self, requests: int, rows: int, rate: float, most: int) -> int:
        """How many guesses of one request pay for their rows in a draft pass.

        A guess that is right saves the request its share of another pass.

        Args:
            requests: of the pass.
            rows: that it has without them.
            rate: that the river says what was guessed.
            most: guesses that there are.
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
        rows, seconds = self.rows + drafted, self.costs.seconds
        return seconds("backbone", rows + added) - seconds("backbone", rows)


FREE = Costs.fixed({"backbone": {1: 0.0}, "draft": {1: 1.0, 1 << 16: 1.0}})
"""Costs by which rows are free, and a pass saved is a pass saved."""


def fixed_depth(requests: int) -> Depth:
    """Every token is worth a draft."""
    return Depth(FREE, requests, math.inf)


def best_depth(costs: Costs, rates: Sequence[float], limits: Sequence[int]) -> Depth:
    """Weigh every uniform depth.

    Args:
        rates: acceptance of each request of the step.
        limits: tokens that each may draft at most.
    """
    requests = len(rates)
    a, limit = np.asarray(rates), np.asarray(limits)
    seconds, tokens = costs.seconds("backbone", requests), float(requests)
    without = best = seconds / tokens if requests else 0.0
    draft_seconds, drafted = 0.0, 0
    for level in range(1, int(limit.max(initial=0)) + 1):
        going = limit >= level
        count = int(going.sum())
        draft_seconds += costs.seconds("draft", count)
        drafted += count
        tokens += float((a[going] ** level).sum())
        verifying = costs.seconds("backbone", requests + drafted)
        best = min(best, (draft_seconds + verifying) / tokens)
    return Depth(costs, requests, best if best * GAIN < without else 0.0)
