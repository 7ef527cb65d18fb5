"""A confidence interval without assumptions about the shape of the data."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

from server.bench.measure.statistics import percentile

RESAMPLES = 4000
"""Draws; the quantiles then vary by well under the width of an interval."""


def median_interval(
    values: Sequence[float], confidence: float, seed: str, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """Percentile bootstrap of the median (Efron 1979); ``None`` below two values.

    Args:
        values: one per round; rounds are what is drawn, with replacement.
        confidence: share in the interval, between 0 and 1.
    """
    if len(values) < 2:
        return None
    chance = random.Random(seed)
    medians = sorted(median(chance.choices(values, k=len(values))) for _ in range(resamples))
    tail = 50 * (1 - confidence)
    return percentile(medians, tail), percentile(medians, 100 - tail)
