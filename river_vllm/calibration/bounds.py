"""P-values for the mean of losses in [0, 1] from a finite sample."""

from __future__ import annotations

from math import exp, floor, lgamma, log

import numpy as np
import numpy.typing as npt

LARGEST_BET = 0.95
"""Share of the largest bet that could not lose everything on one loss of 1."""


def betting_p_value(losses: npt.ArrayLike, limit: float) -> float:
    """P-value of "the mean loss is at least ``limit``" by betting against it.

    Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (JRSS B 2024).
    The capital ∏ (1 + λ_i·(limit − X_i)) is never negative for bets λ_i in [0, 1/(1 − limit)), and
    where the mean loss is at least ``limit`` no bet that knows only earlier losses gains in
    expectation. So, by Ville's inequality, the largest value it ever takes exceeds 1/p with
    probability p at most. The value may be looked at after every loss, and the sampling stopped
    at will. The bets are their "aGRAPA" (approximate growth-rate-adaptive, section B.3):
    (limit − mean)/(variance + (limit − mean)²) of the losses so far, which start as one loss of
    half the limit.

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
    wealth = np.cumsum(np.log1p(_bets(x, limit) * (limit - x)))
    return exp(-max(0.0, float(wealth.max(initial=0.0))))


def _bets(losses: npt.NDArray[np.float64], limit: float) -> npt.NDArray[np.float64]:
    """Each from the losses before it."""
    prior = limit / 2
    count = np.arange(1, losses.size + 1)
    mean = (prior + np.concatenate(([0.0], np.cumsum(losses)[:-1]))) / count
    # The squared distance of each loss to the mean that was known then.
    distance = (losses - (prior + np.cumsum(losses)) / (count + 1)) ** 2
    variance = (prior**2 + np.concatenate(([0.0], np.cumsum(distance)[:-1]))) / count
    margin = np.maximum(limit - mean, 0.0)
    wanted = margin / (variance + margin**2)
    return np.minimum(wanted, LARGEST_BET / (1.0 - limit))


def upper_bound(losses: npt.ArrayLike, delta: float) -> float:
    """The mean loss is below this with probability 1 − δ at least: the smallest limit whose
    hypothesis betting rejects."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if betting_p_value(losses, middle) <= delta:
            high = middle
        else:
            low = middle
    return high


def hoeffding_bentkus_p_value(losses: npt.ArrayLike, limit: float) -> float:
    """The same hypothesis by Hoeffding's and Bentkus's inequalities; the size must be fixed before.

    Bates et al., "Distribution-free, risk-controlling prediction sets" (JACM 2021), as used by
    Angelopoulos et al., "Learn then Test" (2021): with n losses of mean r,
    min(exp(−n·KL(min(r, limit), limit)), e·P(Bin(n, limit) ≤ ⌈n·r⌉)).
    """
    x = np.asarray(losses, dtype=np.float64)
    n = x.size
    if n == 0:
        return 1.0
    mean = min(float(x.mean()), limit)
    hoeffding = exp(-n * _bernoulli_kl(mean, limit))
    total = floor(float(x.sum()) + 1 - 1e-9)
    return min(1.0, hoeffding, exp(1) * _binomial_cdf(total, n, limit))


def prompts_needed(limit: float, expected: float, delta: float) -> int:
    """About how many losses make the betting p-value fall to ``delta``, if they vary little.

    Each multiplies the wealth of the largest bet by (1 − expected)/(1 − limit) at best.
    """
    growth = log((1.0 - expected) / (1.0 - limit))
    return int(np.ceil(log(1.0 / delta) / growth))


def prompts_wanted(limit: float, share: float, delta: float) -> int:
    """``prompts_needed`` for a loss of that share of the limit, and a quarter more: losses vary."""
    return -(-prompts_needed(limit, share * limit, delta) * 5 // 4)


def _bernoulli_kl(a: float, b: float) -> float:
    first = a * log(a / b) if a > 0 else 0.0
    second = (1 - a) * log((1 - a) / (1 - b)) if a < 1 else 0.0
    return first + second


def _binomial_cdf(successes: int, n: int, p: float) -> float:
    """P(Bin(n, p) ≤ successes)."""
    if successes >= n:
        return 1.0
    terms = [
        lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log(1 - p)
        for k in range(successes + 1)
    ]
    return min(1.0, float(np.exp(np.logaddexp.reduce(terms))))
