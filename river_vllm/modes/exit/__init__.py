"""Exit mode: a token leaves the backbone when its state has settled."""

from __future__ import annotations

import numpy as np

from river_vllm.depths import Depths, ExitSummary, trace


class ExitMode:
    """Fast and approximate, with a dial: the threshold τ. The backbone alone is an answer in which
    no token leaves."""

    def numbers(self, tokens: int, *, depth: int, drafted: int, kept: int, decode: bool) -> Depths:
        return np.full(tokens, depth, dtype=np.int16)

    def summary(self) -> ExitSummary:
        return ExitSummary()

    def trace(self, numbers: Depths) -> list[int]:
        return trace(numbers)
