"""Times of things that are compared: they take turns, so that a busy moment meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]


def medians(
    calls: Sequence[Call],
    repeats: int,
    device: torch.device | None = None,
    before: Call | None = None,
    warm: int = 0,
) -> list[float]:
    """Median seconds of each call, to the end of its work on the device.

    Args:
        repeats: turns that count.
        device: where the calls compute; None if they return when all is done.
        before: runs ahead of each call, untimed.
        warm: turns ahead of those, which do not count: the first of a shape makes what later ones
            find.
    """
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(warm + repeats):
        for call, seconds in zip(calls, taken, strict=True):
            if before is not None:
                before()
            start = time.perf_counter()
            call()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds[warm:]) for seconds in taken]
