"""The p-value holds what it promises, and is small where it should be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from river_vllm.calibrate.certify import p_value, prompts_needed, upper_bound

LIMIT, DELTA = 0.05, 0.1
RUNS = 1500

Draw = Callable[[np.random.Generator, int], np.ndarray]


def _bernoulli(rng: np.random.Generator, n: int) -> np.ndarray:
    return (rng.random(n) < LIMIT).astype(float)


def _small_and_steady(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.binomial(32, LIMIT, n) / 32


def _mostly_nothing(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.where(rng.random(n) < LIMIT / 0.5, 0.5, 0.0)


def _skewed(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.beta(0.2, 0.2 * (1 - LIMIT) / LIMIT, n)


@pytest.mark.parametrize("draw", [_bernoulli, _small_and_steady, _mostly_nothing, _skewed])
def test_error_rate(draw: Draw) -> None:
    """The mean is exactly the limit, the worst case of the hypothesis: p ≤ δ happens with
    probability δ at most, and is observed less often than three standard errors above that."""
    rng = np.random.default_rng(1)
    rejected = sum(p_value(draw(rng, 200), LIMIT) <= DELTA for _ in range(RUNS))
    assert rejected / RUNS <= DELTA + 3 * (DELTA * (1 - DELTA) / RUNS) ** 0.5


def test_error_rate_with_stopping_at_will() -> None:
    """Looked at again and again, and stopped at the first rejection, as calibration does."""
    rng = np.random.default_rng(2)

    def ever(losses: np.ndarray) -> bool:
        return any(p_value(losses[:n], LIMIT) <= DELTA for n in range(10, 201, 10))

    rejected = sum(ever(_small_and_steady(rng, 200)) for _ in range(300))
    assert rejected / 300 <= DELTA + 3 * (DELTA * (1 - DELTA) / 300) ** 0.5


def test_power() -> None:
    """Half the limit, 16 tokens a prompt: 320 prompts are mostly enough for 2 %."""
    rng = np.random.default_rng(3)
    passed = sum(p_value(rng.binomial(16, 0.01, 320) / 16, 0.02) <= DELTA for _ in range(200))
    assert passed / 200 > 0.7


def test_nothing_known_proves_nothing() -> None:
    assert p_value([], 0.1) == 1.0
    assert p_value([0.5] * 100, 0.1) == 1.0


def test_the_bound_is_the_smallest_limit_that_is_rejected() -> None:
    losses = np.random.default_rng(4).binomial(16, 0.03, 200) / 16
    bound = upper_bound(losses, DELTA)
    assert losses.mean() < bound < 0.06
    assert p_value(losses, bound) == pytest.approx(DELTA, rel=1e-3)


@pytest.mark.parametrize(("losses", "limit"), [([0.1], 0.0), ([0.1], 1.0), ([0.1, 1.5], 0.1)])
def test_what_is_out_of_range_is_refused(losses: list[float], limit: float) -> None:
    with pytest.raises(ValueError):
        p_value(losses, limit)


def test_prompts_needed() -> None:
    needed = prompts_needed(0.02, 0.5, 0.1)
    assert 280 < needed < 290
    # A sample of that size, without variance, is about enough; half of it is not.
    assert p_value(np.full(int(1.05 * needed), 0.01), 0.02) <= 0.1
    assert p_value(np.full(needed // 2, 0.01), 0.02) > 0.1
