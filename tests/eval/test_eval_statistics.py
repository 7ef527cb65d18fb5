"""Intervals and the test, against published values and their own definitions."""

from __future__ import annotations

from itertools import product
from math import comb, exp, lgamma, log, sqrt

import pytest

from server.evaluate.figures.statistics import mcnemar_exact, paired_interval, wilson_interval

Z = 1.959963984540054


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857, table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published(correct: int, total: int, low: float, high: float):
    found = wilson_interval(correct, total, 0.95)
    assert found == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (1, 3), (50, 100), (99, 100), (12, 12)])
def test_wilson_bounds_are_the_shares_just_not_rejected(correct: int, total: int):
    """Each bound b solves |p − b| = z·√(b(1−b)/n), unless it lies at the end of the scale."""
    for bound in wilson_interval(correct, total, 0.95):
        if bound not in (0.0, 1.0):
            error = abs(correct / total - bound)
            assert error == pytest.approx(Z * sqrt(bound * (1 - bound) / total), rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "p"),
    [
        (0, 0, 1),
        (0, 1, 1),
        (0, 5, 2 / 32),
        (1, 9, 22 / 1024),
        (3, 3, 1),
        (4, 5, 1),
        (2, 8, 112 / 1024),
    ],
)
def test_mcnemar_by_hand(a: int, b: int, p: float):
    assert mcnemar_exact(a, b) == p
    assert mcnemar_exact(b, a) == p


def test_mcnemar_of_many_flips_does_not_overflow():
    a, b = 1900, 2000
    logs = [lgamma(a + b + 1) - lgamma(k + 1) - lgamma(a + b - k + 1) for k in range(a + 1)]
    tail = sum(exp(value - (a + b) * log(2)) for value in logs)
    assert mcnemar_exact(a, b) == pytest.approx(2 * tail, rel=1e-8)


@pytest.mark.parametrize("flips", [6, 25, 60])
def test_mcnemar_rejects_a_true_hypothesis_in_at_most_5_percent(flips: int):
    rejected = [comb(flips, k) for k in range(flips + 1) if mcnemar_exact(k, flips - k) <= 0.05]
    assert 0 < sum(rejected) / 2**flips <= 0.05


def test_paired_interval_by_hand():
    """p = 4/10, q = 2/10: 0.2 ± z·√(0.56 / 10)."""
    half = Z * sqrt(0.056)
    assert paired_interval(1, 3, 8, 0.95) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    assert paired_interval(3, 1, 8, 0.95) == (pytest.approx(-0.2 - half), pytest.approx(half - 0.2))


def test_paired_interval_without_flips_has_a_width():
    low, high = paired_interval(0, 0, 100, 0.95)
    assert -high == pytest.approx(low)
    assert high == pytest.approx(Z * sqrt(2) / 102)


@pytest.mark.parametrize(
    ("a", "b"), [(0.02, 0.02), (0.05, 0.1), (0.1, 0.0), (0.2, 0.3), (0.4, 0.4)]
)
def test_paired_interval_covers_the_true_difference(a: float, b: float):
    """Exactly, over all outcomes of 50 pairs that flip with these probabilities."""
    n, covered = 50, 0.0
    for x, y in product(range(n + 1), repeat=2):
        if x + y > n:
            continue
        low, high = paired_interval(x, y, n, 0.95)
        if low <= b - a <= high:
            ways = comb(n, x) * comb(n - x, y)
            covered += ways * a**x * b**y * (1 - a - b) ** (n - x - y)
    assert 0.93 <= covered <= 1


@pytest.mark.parametrize(
    "call", [lambda: wilson_interval(0, 0, 0.9), lambda: paired_interval(0, 0, 0, 0.9)]
)
def test_nothing_has_no_interval(call):
    with pytest.raises(ValueError, match="expected at least 1"):
        call()


def test_more_confidence_is_wider():
    for one, other in zip(wilson_interval(5, 9, 0.9), wilson_interval(5, 9, 0.99), strict=True):
        assert abs(other - 5 / 9) > abs(one - 5 / 9)
    assert paired_interval(1, 2, 9, 0.99)[1] > paired_interval(1, 2, 9, 0.9)[1]
