"""Seconds by rows of one kind of pass, fitted to timings of which any single one may be wrong.

Two rules hold for every pass on every machine: more rows never take less time, and a row never
takes longer among more rows. Timings that break one contradict each other; the curve goes through
the heaviest set of timings that do not, and for the others through what these make of them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

TOLERANCE = 1.25
"""Two timings contradict each other if they break a rule by more than this factor."""
MEASURED = 20.0
"""Weight of a point that was measured on purpose, in observed passes."""
MEMORY = 0.98
"""What is left of a point's weight after one more step: half of it after 34."""
FEW = 4.0
"""A point never counts as less than so many passes, so that one pass cannot set it."""
SURPRISE = 2.0
"""A pass that takes longer or less than expected by more than this factor counts as this factor."""
_LEAST = 1e-6
"""Weight of a point that is forgotten; above 0 for the sake of weighted means."""


class CostCurve:
    """Seconds by number of rows: straight between points and beyond them, never falling.

    Args:
        points: seconds by rows.
        dear: which of two contradicting sets to believe where they weigh the same: the one that
            took longer, or the one that took less. Other load only ever makes a pass slower, so the
            latter is more likely; the former keeps a comparison from being lost to a single timing
            that is too good to be true.
    """

    def __init__(self, points: Mapping[int, float], dear: bool = False) -> None:
        self._rows = tuple(sorted(points))
        self._seconds = [points[rows] for rows in self._rows]
        self._weights = [MEASURED] * len(self._rows)
        self._dear = dear
        self._fit()

    @property
    def rows(self) -> tuple[int, ...]:
        """The points' numbers of rows, ascending."""
        return self._rows

    @property
    def contradicted(self) -> frozenset[int]:
        """Rows of the points that the curve does not go through."""
        return frozenset(self._rows) - frozenset(self._knots)

    @property
    def span(self) -> tuple[float, float]:
        """The fewest and the most rows that the curve is to be believed for: it ends before a first
        or last point that is contradicted."""
        first, last = self._knots[0], self._knots[-1]
        return (
            0 if first == self._rows[0] else first,
            math.inf if last == self._rows[-1] else last,
        )

    def __call__(self, rows: int) -> float:
        if rows <= 0:
            return 0.0
        knots, heights = self._knots, self._heights
        right = bisect_right(knots, rows)
        if right == 0:
            return heights[0] - self._first_slope * (knots[0] - rows)
        if right == len(knots):
            return heights[-1] + self._last_slope * (rows - knots[-1])
        below, above = knots[right - 1], knots[right]
        part = (rows - below) / (above - below)
        return heights[right - 1] + part * (heights[right] - heights[right - 1])

    def observe(self, rows: int, seconds: float, steps: int = 1) -> None:
        """Correct the curve by a pass over ``rows``, the more the nearer a point is to them.

        Args:
            seconds: what the pass took, above 0.
            steps: steps since the last observation, by which the points' weights are older.
        """
        change = seconds / self(rows)
        fade = MEMORY**steps
        for index, at in enumerate(self._rows):
            # 1 at the same number of rows, a quarter at half or twice as many.
            near = (min(at, rows) / max(at, rows)) ** 2
            weight = max(self._weights[index] * fade, _LEAST) + near
            self._weights[index] = weight
            surprise = self(at) * change / self._seconds[index]
            bounded = min(max(surprise, 1 / SURPRISE), SURPRISE)
            self._seconds[index] *= bounded ** (near / max(weight, FEW))
        self._fit()

    def _fit(self) -> None:
        kept = self._agreeing()
        knots = [self._rows[i] for i in kept]
        heights = isotonic([self._seconds[i] for i in kept], [self._weights[i] for i in kept])
        self._knots, self._heights = knots, heights
        # A row's share, and less where a second point says so.
        self._first_slope, self._last_slope = heights[0] / knots[0], heights[-1] / knots[-1]
        if len(kept) > 1:
            first = (heights[1] - heights[0]) / (knots[1] - knots[0])
            last = (heights[-1] - heights[-2]) / (knots[-1] - knots[-2])
            self._first_slope = min(first, self._first_slope)
            self._last_slope = min(last, self._last_slope)

    def _agreeing(self) -> tuple[int, ...]:
        """Indices of the heaviest ascending chain of points whose neighbours agree.

        The heaviest chain that ends in a point is the heaviest one that ends in a point before it
        and agrees with it, and the point itself.
        """
        every = tuple(range(len(self._rows)))
        if all(self._agree(i, i + 1) for i in every[:-1]):
            return every
        sign = 1.0 if self._dear else -1.0
        chains: list[tuple[float, float, tuple[int, ...]]] = []
        for index, (weight, seconds) in enumerate(zip(self._weights, self._seconds, strict=True)):
            before = max(
                (chains[i] for i in range(index) if self._agree(i, index)), default=(0.0, 0.0, ())
            )
            chains.append((before[0] + weight, before[1] + sign * seconds, (*before[2], index)))
        return max(chains)[2]

    def _agree(self, fewer: int, more: int) -> bool:
        low, high = self._seconds[fewer], self._seconds[more]
        share = self._rows[more] / self._rows[fewer]
        return low <= TOLERANCE * high and high <= TOLERANCE * low * share


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The never falling sequence with the least weighted squared distance to ``values``.

    Pool adjacent violators: what would fall is merged with what is before it, into the mean.

    Args:
        weights: of each value, above 0.
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        size = 1
        while blocks and blocks[-1][0] > value:
            before, heavy, count = blocks.pop()
            value = (before * heavy + value * weight) / (heavy + weight)
            weight, size = heavy + weight, size + count
        blocks.append((value, weight, size))
    return [value for value, _, size in blocks for _ in range(size)]
