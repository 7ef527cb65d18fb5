"""Intervals and a test for shares, each from a published formula."""

from __future__ import annotations

from math import comb, sqrt
from statistics import NormalDist


def wilson_interval(correct: int, total: int, confidence: float) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927).

    With z the normal quantile of ``confidence``, n = ``total`` and p = correct / n:
    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n).

    Raises:
        ValueError: ``total`` is 0.
    """
    if total < 1:
        raise ValueError(f"'total' = {total}: expected at least 1")
    z = _quantile(confidence)
    p, scale = correct / total, 1 + z * z / total
    middle = p + z * z / (2 * total)
    half = z * sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test (McNemar 1947): a sign test of the pairs that differ.

    Under the hypothesis that both sides are equally good, each flip goes either way with
    probability ½: p = min(1, 2·Σ_{k ≤ min(b,c)} C(b+c, k) / 2^(b+c)).
    """
    flips = only_a + only_b
    tail = sum(comb(flips, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**flips)


def paired_interval(only_a: int, only_b: int, pairs: int, confidence: float) -> tuple[float, float]:
    """Interval of share(B) − share(A) on the same problems: adjusted Wald (Bonett & Price 2012).

    One flip is added each way: with p = (only_b + 1)/(n + 2) and q = (only_a + 1)/(n + 2),
    p − q ± z·√((p + q − (p − q)²) / (n + 2)). Without any flip it still has a width.

    Raises:
        ValueError: ``pairs`` is 0.
    """
    if pairs < 1:
        raise ValueError(f"'pairs' = {pairs}: expected at least 1")
    n = pairs + 2
    p, q = (only_b + 1) / n, (only_a + 1) / n
    half = _quantile(confidence) * sqrt((p + q - (p - q) ** 2) / n)
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
