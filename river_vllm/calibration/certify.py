"""Fixed-sequence testing of candidates: which of them keep the target, with a bounded error.

Angelopoulos et al., "Learn then Test: calibrating predictive algorithms to achieve risk control"
(2021): hypotheses "candidate j misses the target" are tested one after another at level δ, up to
the first that cannot be rejected. However many there are, the probability that any of those
rejected is true is at most δ, so the best of them may be chosen freely. The candidates and their
order must not depend on the texts that they are tested on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from river_vllm.calibration.bounds import betting_p_value, hoeffding_bentkus_p_value
from river_vllm.calibration.observer import Measured
from river_vllm.calibration.policy import Policy
from river_vllm.calibration.target import Target, prompt_losses

Pass = Callable[[Policy, slice], Measured]
"""Measures a policy on some of the texts, by their numbers."""


@dataclass(slots=True)
class Trial:
    """One candidate.

    Attributes:
        losses: of the texts that were looked at, in their order.
        p_value: of "the expected loss is at least the limit"; by betting.
        hoeffding_bentkus: the same by another bound, as a cross-check that assumes a size fixed
            in advance.
        passed: whether the hypothesis is rejected.
        measured: token by token.
    """

    policy: Policy
    losses: list[float]
    p_value: float
    hoeffding_bentkus: float
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

    @property
    def kl(self) -> float:
        return float(np.concatenate([m.kl for m in self.measured]).mean())


def run_test(
    policy: Policy,
    measure: Pass,
    texts: int,
    portion: int,
    target: Target,
    delta: float,
    to_the_end: bool = False,
) -> Trial:
    """Test one candidate on ``texts`` texts, ``portion`` at a time.

    It ends as soon as the hypothesis is rejected (the betting bound may be looked at after every
    loss), or where it looks hopeless half-way, which only ever counts as "not rejected"; with
    ``to_the_end`` all texts are looked at.
    """
    test = Trial(policy, [], 1.0, 1.0, False, [])
    for start in range(0, texts, portion):
        measured = measure(policy, slice(start, min(start + portion, texts)))
        test.measured.append(measured)
        test.losses += prompt_losses(measured, target.token_loss(measured)).values()
        test.p_value = betting_p_value(test.losses, target.limit)
        test.passed = test.p_value <= delta
        hopeless = len(test.losses) >= texts / 2 and test.loss >= target.limit
        if (test.passed or hopeless) and not to_the_end:
            break
    test.hoeffding_bentkus = hoeffding_bentkus_p_value(test.losses, target.limit)
    return test


def fixed_sequence(candidates: Sequence[Policy], test: Callable[[Policy], Trial]) -> list[Trial]:
    """Tests in order, up to and with the first that does not pass."""
    found: list[Trial] = []
    for policy in candidates:
        found.append(test(policy))
        if not found[-1].passed:
            break
    return found
