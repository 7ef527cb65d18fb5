"""Paired comparison of two sides on the same problems."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import binomtest, norm, ttest_1samp

from river_vllm.errors import RiverError
from server.eval.samples import Sample, Samples

METHODS = {
    "p_value": "exact McNemar test, two-sided: a sign test of the problems that differ",
    "interval": "of shares: adjusted Wald for pairs (Bonett and Price 2012); of other means: "
    "Student's t of the differences",
}


@dataclass(frozen=True, slots=True)
class Paired:
    """Both sides' values of one metric of a task, with one filter of lm-eval."""

    task: str
    filter: str
    metric: str
    problems: int
    is_share: bool
    """Whether each problem counts 0 or 1."""
    a: float
    b: float
    difference: float
    """B minus A."""
    low: float
    high: float
    only_a: list[str]
    """Problems on which A is higher: B's losses, where higher is better."""
    only_b: list[str]
    p_value: float
    identical: int
    """Problems with the same answer on both sides, character by character."""


def pair(a: Samples, b: Samples, confidence: float) -> list[Paired]:
    """One comparison per task, filter and metric that both sides have for each problem.

    Raises:
        RiverError: the sides' problems or prompts differ, or no metric covers each problem.
    """
    found = []
    for key in sorted(a.keys() | b.keys()):
        one, two = a.get(key, {}), b.get(key, {})
        numbers = sorted(one.keys() | two.keys())
        pairs = [(one[n], two[n]) for n in numbers if n in one and n in two]
        if len(pairs) < len(numbers):
            raise RiverError(
                f"{key[0]} ({key[1]}): A has {len(one)} problems and B {len(two)}, "
                f"{len(pairs)} of them the same: expected the same on both sides"
            )
        for left, right in pairs:
            if left.asked != right.asked:
                raise RiverError(f"{key[0]}: problem {left.id} has another text or prompt in B")
        for metric in pairs[0][0].metrics:
            if all(metric in sample.metrics for both in pairs for sample in both):
                found.append(_pair(*key, metric, pairs, confidence))
    if not found:
        raise RiverError(
            "there is nothing to compare: no metric has a number for each problem on both sides"
        )
    return found


def _pair(
    task: str, filter: str, metric: str, pairs: list[tuple[Sample, Sample]], confidence: float
) -> Paired:
    values = [(one.metrics[metric], two.metrics[metric]) for one, two in pairs]
    changes = [two - one for one, two in values]
    only_a = [one.id for (one, _), change in zip(pairs, changes, strict=True) if change < 0]
    only_b = [one.id for (one, _), change in zip(pairs, changes, strict=True) if change > 0]
    flips = len(only_a) + len(only_b)
    is_share = all(value in (0, 1) for both in values for value in both)
    low, high = (
        _interval_of_shares(len(only_a), len(only_b), len(pairs), confidence)
        if is_share
        else _interval_of_means(changes, confidence)
    )
    return Paired(
        task=task,
        filter=filter,
        metric=metric,
        problems=len(pairs),
        is_share=is_share,
        a=math.fsum(one for one, _ in values) / len(pairs),
        b=math.fsum(two for _, two in values) / len(pairs),
        difference=math.fsum(changes) / len(pairs),
        low=low,
        high=high,
        only_a=only_a,
        only_b=only_b,
        p_value=float(binomtest(len(only_a), flips).pvalue) if flips else 1.0,
        identical=sum(one.answer == two.answer for one, two in pairs),
    )


def _interval_of_shares(
    only_a: int, only_b: int, pairs: int, confidence: float
) -> tuple[float, float]:
    """p − q ± z·√((p + q − (p − q)²)/(n + 2)), with p = (only_b + 1)/(n + 2) and q likewise of A.

    Without a flip the interval still has a width.
    """
    n = pairs + 2
    p, q = (only_b + 1) / n, (only_a + 1) / n
    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt((p + q - (p - q) ** 2) / n)
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def _interval_of_means(changes: list[float], confidence: float) -> tuple[float, float]:
    if len(set(changes)) == 1:
        return changes[0], changes[0]
    interval = ttest_1samp(changes, 0).confidence_interval(confidence)
    return float(interval.low), float(interval.high)
