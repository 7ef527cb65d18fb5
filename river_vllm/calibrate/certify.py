"""Fixed-sequence testing of candidates: which of them keep the target, with a bounded error.

Angelopoulos et al., "Learn then Test: calibrating predictive algorithms to achieve risk control"
(2021): the hypotheses "this candidate misses the target" are tested one after another at level δ,
up to the first that cannot be rejected. For any number of candidates, a true hypothesis is rejected
with probability δ at most, so each candidate that passed may be chosen. The candidates and their
order must not depend on the texts of the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from river_vllm.calibrate.bounds import p_value
from river_vllm.calibrate.choose import Policy
from river_vllm.calibrate.observer import Measured

Pass = Callable[[Policy, slice], Measured]
"""Measures a policy on a range of the texts."""


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
    losses: list[float] = (np.bincount(index, ~measured.agrees) / np.bincount(index)).tolist()
    return losses


def run_test(
    policy: Policy,
    measure: Pass,
    texts: int,
    batch: int,
    limit: float,
    delta: float,
    to_the_end: bool = False,
) -> Trial:
    """Test one candidate on ``texts`` texts, ``batch`` at a time.

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
