"""What a draft step and a verifying pass cost, by rows: whole passes, measured at load."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from river_vllm.kernels.timing import medians

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
REPEATS = 3

Pass = Callable[[int], object]
"""Runs one pass of so many rows to its end."""


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds by number of rows; straight between what was measured, and beyond it.

    Attributes:
        rows: measured row counts, ascending.
        seconds: of each; never falling, so that a noisy point cannot pay for itself.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    @classmethod
    def of(cls, points: Iterable[tuple[int, float]]) -> CostCurve:
        rows, seconds = zip(*sorted(points), strict=True)
        return cls(rows, tuple(np.maximum.accumulate(seconds).tolist()))

    def __call__(self, rows: int) -> float:
        if rows <= 0:
            return 0.0
        if rows > self.rows[-1]:
            return self.seconds[-1] + (rows - self.rows[-1]) * self._last_slope()
        return float(np.interp(rows, self.rows, self.seconds))

    def _last_slope(self) -> float:
        if len(self.rows) == 1:
            return self.seconds[0] / self.rows[0]
        return (self.seconds[-1] - self.seconds[-2]) / (self.rows[-1] - self.rows[-2])


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Both passes of a verified step."""

    draft: CostCurve
    """One token for each of so many requests, by the river."""
    verify: CostCurve
    """One pass of the backbone over so many rows, with their logits."""

    def describe(self) -> dict[str, dict[str, float]]:
        """Milliseconds by rows, for operators."""
        return {
            name: {
                str(rows): round(1e3 * seconds, 2)
                for rows, seconds in zip(curve.rows, curve.seconds, strict=True)
            }
            for name, curve in (("draft_ms", self.draft), ("verify_ms", self.verify))
        }


def measure(draft: Pass, verify: Pass, most_requests: int, most_rows: int) -> StepCosts:
    """Time both passes; they take turns, so that a busy moment meets both.

    Args:
        most_requests: rows that a draft step can have.
        most_rows: rows that a verifying pass can have.
    """
    draft_times: dict[int, float] = {}
    verify_times: dict[int, float] = {}
    passes = ((draft, draft_times, most_requests), (verify, verify_times, most_rows))
    for rows in ROWS:
        due = [(run, times) for run, times, most in passes if rows <= most]
        found = medians([partial(run, rows) for run, _ in due], REPEATS)
        for (_, times), seconds in zip(due, found, strict=True):
            times[rows] = seconds
    return StepCosts(CostCurve.of(draft_times.items()), CostCurve.of(verify_times.items()))
