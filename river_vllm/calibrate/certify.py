"""Tests of candidates: which of them keep the target, with a bounded probability of an error.

Angelopoulos et al., "Learn then Test: calibrating predictive algorithms to achieve risk control"
(2021): the hypotheses "this candidate misses the target" are tested one after another at level δ,
up to the first that cannot be rejected. For any number of candidates, a true hypothesis is rejected
with probability δ at most, so each candidate that passed may be chosen. The candidates and their
order must not depend on the texts of the test.

Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (JRSS B 2024):
losses in [0, 1] are drawn one by one. Before each, a bettor stakes a share of the capital on a loss
below the limit: a bet λ multiplies the capital by 1 + λ·(limit − loss). If the mean loss is at
least the limit, no bet gains in expectation. By Ville's inequality the capital then ever reaches
1/p with probability p at most. So a large capital is evidence that the mean is below the limit, at
any time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, log

import numpy as np
import numpy.typing as npt

from river_vllm.calibrate.passes import Measured, Policy

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


@dataclass(slots=True)
class Trial:
    """The test of one candidate.

    Attributes:
        losses: of the texts that were measured, in their order.
        p_value: of the hypothesis "the expected loss is at least the limit".
        passed: whether that is rejected.
        measured: results of the passes, token by token.
    """

    policy: Policy
    losses: list[float]
    p_value: float
    passed: bool
    measured: list[Measured]

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses)) if self.losses else 1.0

    @property
    def mean_exit_layer(self) -> float:
        return float(np.concatenate([m.exit_layer for m in self.measured]).mean())

    @property
    def agreement(self) -> float:
        return float(np.concatenate([m.agrees for m in self.measured]).mean())


def text_losses(measured: Measured) -> list[float]:
    """For each text, the share of its tokens that differ from the backbone's."""
    _, index = np.unique(measured.tokens[:, 0], return_inverse=True)
    return (np.bincount(index, ~measured.agrees) / np.bincount(index)).tolist()


def run_test(
    policy: Policy,
    measure: Callable[[Policy, slice], Measured],
    texts: int,
    batch: int,
    limit: float,
    delta: float,
    to_the_end: bool = False,
) -> Trial:
    """Test one candidate on ``texts`` texts; ``measure`` takes a slice of ``batch`` at a time.

    The test ends once the hypothesis is rejected, as this p-value allows. It also ends after half
    of the texts, as not passed, if their mean loss is not below the limit. With ``to_the_end`` all
    texts are measured.
    """
    test = Trial(policy, [], 1.0, False, [])
    for start in range(0, texts, batch):
        measured = measure(policy, slice(start, min(start + batch, texts)))
        test.measured.append(measured)
        test.losses += text_losses(measured)
        test.p_value = p_value(test.losses, limit)
        test.passed = test.p_value <= delta
        hopeless = len(test.losses) >= texts / 2 and test.loss >= limit
        if (test.passed or hopeless) and not to_the_end:
            break
    return test
