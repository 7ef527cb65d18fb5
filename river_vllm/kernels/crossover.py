"""From how many rows on 4-bit no longer pays, measured at load.

First by both products of one layer, then by whole steps where the worker can run them: what a
routed step does besides its products counts too, and more so in a small model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from river_vllm.kernels.timing import medians

ROWS = (1, 2, 4, 8, 16, 32)
REPEATS = 5
STEP_REPEATS = 5
CACHE = 64 << 20
"""Bytes written between two products, so that neither finds its weight in the cache."""

PAYS = 1.05
"""Below it, a gain is not told from noise; nor is a loss above its inverse."""

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
            found = medians(
                [partial(backbone, x), partial(river, x)], REPEATS, device, partial(scrub.add_, 1)
            )
            for sums, seconds in zip((self._backbone, self._river), found, strict=True):
                sums[rows] = sums.get(rows, 0.0) + seconds

    def measure_steps(self, backbone: Pass, river: Pass, most: int) -> None:
        """Replace what was measured by whole steps of up to ``most`` rows, by turns."""
        found = {
            rows: medians([partial(backbone, rows), partial(river, rows)], STEP_REPEATS, warm=1)
            for rows in ROWS
            if rows <= most
        }
        self._backbone = {rows: seconds for rows, (seconds, _) in found.items()}
        self._river = {rows: seconds for rows, (_, seconds) in found.items()}

    @property
    def speedup(self) -> dict[int, float]:
        """Rows → backbone's time over the river's."""
        return {rows: self._backbone[rows] / self._river[rows] for rows in sorted(self._river)}

    @property
    def rows(self) -> int:
        """The most rows for which the river pays, without a loss at any number below it.

        What is neither a gain nor a loss decides nothing: the bytes that 4 bit saves are shared by
        the rows of a step, so one row gains if four do, whatever a busy moment made of it.
        """
        most = 0
        for rows, speedup in self.speedup.items():
            if speedup < 1 / PAYS:
                break
            if speedup >= PAYS:
                most = rows
        return most
