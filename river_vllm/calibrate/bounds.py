"""Bounds, from a finite sample, on the mean of losses in [0, 1].

Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (JRSS B 2024).
Losses are drawn one by one. Before each, a bettor stakes a share of the capital on a loss below the
limit: a bet λ multiplies the capital by 1 + λ·(limit − loss). If the mean loss is at least the
limit, no bet gains in expectation. By Ville's inequality the capital then ever reaches 1/p with
probability p at most. So a large capital is evidence that the mean is below the limit, at any time.
"""

from __future__ import annotations

from math import ceil, exp, log

import numpy as np
import numpy.typing as npt

LARGEST_BET = 0.95
"""Share of 1/(1 − limit), a bet with which one loss of 1 would lose all of the capital."""


def p_value(losses: npt.ArrayLike, limit: float) -> float:
    """The p-value of "the mean loss is at least ``limit``": one over the largest capital.

    Valid for a number of losses fixed beforehand, and for stopping at any time. The bets are the
    paper's "aGRAPA" (approximate growth-rate-adaptive, section B.3):
    (limit − mean)/(variance + (limit − mean)²) of the losses so far, to which one of half the limit
    is added at the start.

    Args:
        losses: independent, each in [0, 1] with the same mean, in the order of drawing.
        limit: in (0, 1).

    Raises:
        ValueError: a loss or the limit is out of range.
    """
    x = np.asarray(losses, dtype=np.float64)
    if not 0.0 < limit < 1.0:
        raise ValueError(f"'limit' = {limit}: expected above 0 and below 1")
    if not np.all((x >= 0.0) & (x <= 1.0)):
        raise ValueError("'losses': expected values in [0, 1]")
    log_capital = np.cumsum(np.log1p(_bets(x, limit) * (limit - x)))
    return exp(-max(0.0, float(log_capital.max(initial=0.0))))


def _bets(losses: npt.NDArray[np.float64], limit: float) -> npt.NDArray[np.float64]:
    """The bets, each from the losses before it."""
    first = limit / 2
    count = np.arange(1, losses.size + 1)
    mean = (first + np.concatenate(([0.0], np.cumsum(losses)[:-1]))) / count
    # The squared distance of each loss from the mean up to and with it.
    distance = (losses - (first + np.cumsum(losses)) / (count + 1)) ** 2
    variance = (first**2 + np.concatenate(([0.0], np.cumsum(distance)[:-1]))) / count
    margin = np.maximum(limit - mean, 0.0)
    wanted = margin / (variance + margin**2)
    return np.minimum(wanted, LARGEST_BET / (1.0 - limit))


def upper_bound(losses: npt.ArrayLike, delta: float) -> float:
    """The smallest limit below which the mean loss lies with probability 1 − δ at least."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if p_value(losses, middle) <= delta:
            high = middle
        else:
            low = middle
    return high


def prompts_needed(limit: float, share: float, delta: float) -> int:
    """About how many losses show at level δ that a mean loss of ``share · limit`` is below it.

    At best each loss multiplies the capital by (1 − mean)/(1 − limit), with the largest bet. A
    quarter is added, since losses vary.
    """
    growth = log((1.0 - share * limit) / (1.0 - limit))
    return ceil(ceil(log(1.0 / delta) / growth) * 5 / 4)
