"""From how many rows on 4-bit no longer pays: both products of one layer, measured at load."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch

ROWS = (1, 2, 4, 8, 16, 32)
REPEATS = 5
CACHE = 64 << 20
"""Bytes written between two products, so that neither finds its weight in the cache."""

PAYS = 1.1
"""A routed step has more to do than its products: decisions between the layers, and a second pass
where a prompt is in the same step."""

Product = Callable[[torch.Tensor], torch.Tensor]


class Crossover:
    """Times of one decoder layer's projections, on both paths, by number of rows."""

    def __init__(self) -> None:
        self._backbone: dict[int, float] = defaultdict(float)
        self._river: dict[int, float] = defaultdict(float)

    def measure(
        self,
        in_features: int,
        dtype: torch.dtype,
        device: torch.device,
        backbone: Product,
        river: Product,
    ) -> None:
        """Add one projection; the two products take turns on ``[rows, in_features]``."""
        scrub = torch.zeros(CACHE // 4, dtype=torch.int32, device=device)
        for rows in ROWS:
            x = torch.randn(rows, in_features, device=device).to(dtype)
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(REPEATS):
                for product, found in zip((backbone, river), times, strict=True):
                    scrub.add_(1)
                    found.append(seconds(product, x))
            self._backbone[rows] += statistics.median(times[0])
            self._river[rows] += statistics.median(times[1])

    @property
    def speedup(self) -> dict[int, float]:
        """Rows → backbone's time over the river's."""
        return {rows: self._backbone[rows] / self._river[rows] for rows in sorted(self._river)}

    @property
    def rows(self) -> int:
        """The most rows for which the river pays, at that number and at all below it."""
        most = 0
        for rows, speedup in self.speedup.items():
            if speedup < PAYS:
                break
            most = rows
        return most


def seconds(product: Product, x: torch.Tensor) -> float:
    """Time of one call, to the end of its work on the device."""
    start = time.perf_counter()
    product(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start
