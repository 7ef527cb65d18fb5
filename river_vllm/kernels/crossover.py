"""From how many rows on 4-bit no longer pays, measured at load.

First by both products of one layer, then by whole steps where the worker can run them: what a
routed step does besides its products counts too, and more so in a small model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

ROWS = (1, 2, 4, 8, 16, 32)
REPEATS = 5
STEP_REPEATS = 3
CACHE = 64 << 20
"""Bytes written between two products, so that neither finds its weight in the cache."""

PAYS = 1.05
"""Below it, a gain is not told from noise."""

Pass = Callable[[int], object]
"""Runs a step of so many rows to its end."""

Product = Callable[[torch.Tensor], torch.Tensor]


class Crossover:
    """Times on both paths by number of rows: of a layer's projections, later of whole steps."""

    def __init__(self) -> None:
        self._backbone: dict[int, float] = {}
        self._river: dict[int, float] = {}

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
            for sums, found in zip((self._backbone, self._river), times, strict=True):
                sums[rows] = sums.get(rows, 0.0) + statistics.median(found)

    def measure_steps(self, backbone: Pass, river: Pass, most: int) -> None:
        """Replace what was measured by whole steps of up to ``most`` rows, by turns."""
        times: dict[int, tuple[float, float]] = {}
        for rows in ROWS:
            if rows > most:
                break
            found: tuple[list[float], list[float]] = ([], [])
            for _ in range(STEP_REPEATS + 1):
                for run, taken in zip((backbone, river), found, strict=True):
                    start = time.perf_counter()
                    run(rows)
                    taken.append(time.perf_counter() - start)
            # The first of a shape makes what later ones find.
            times[rows] = (statistics.median(found[0][1:]), statistics.median(found[1][1:]))
        self._backbone = {rows: seconds for rows, (seconds, _) in times.items()}
        self._river = {rows: seconds for rows, (_, seconds) in times.items()}

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
