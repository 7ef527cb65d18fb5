"""Times of things that are compared: they take turns, so that a busy moment meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

Call = Callable[[], object]


def medians(calls: Sequence[Call], repeats: int, warm: int = 0) -> list[float]:
    """Median seconds of each call, which returns when its work is done.

    Args:
        repeats: turns that count.
        warm: turns ahead of those: the first of a shape makes what later ones find.
    """
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(warm + repeats):
        for call, seconds in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds[warm:]) for seconds in taken]
