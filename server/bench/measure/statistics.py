"""Means and percentiles that are ``None`` where there is nothing to measure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

PERCENTILES = (50, 90, 95, 99)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear interpolation between the closest ranks of ``ordered`` (sorted, not empty).

    The rank of percentile p among n values is ``p/100 · (n-1)``, counted from 0: Hyndman and
    Fan's definition 7, NumPy's default.
    """
    rank = percent / 100 * (len(ordered) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


@dataclass(frozen=True, slots=True)
class Distribution:
    """A set of samples in one unit."""

    count: int
    mean: float
    std: float
    """Of the samples themselves (population), 0 for a single one."""
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def distribution(samples: Sequence[float]) -> Distribution | None:
    """The figures of ``samples``; ``None`` for no samples, never 0."""
    if not samples:
        return None
    ordered = sorted(samples)
    p50, p90, p95, p99 = (percentile(ordered, percent) for percent in PERCENTILES)
    return Distribution(
        count=len(ordered),
        mean=statistics.fmean(ordered),
        std=statistics.pstdev(ordered),
        min=ordered[0],
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=ordered[-1],
    )
