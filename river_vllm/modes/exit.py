"""Exit mode: a token leaves the backbone when its state has settled."""

from __future__ import annotations

import numpy as np

from river_vllm.depths import Depths, ExitSummary, trace
from river_vllm.modes.mode import Outcome


class ExitMode:
    """Fast and approximate, with a dial: the threshold τ. The backbone alone is an answer in which
    no token leaves."""

    def numbers(self, outcome: Outcome, tokens: int) -> Depths:
        return np.full(tokens, outcome.depth, dtype=np.int16)

    def summary(self) -> ExitSummary:
        return ExitSummary()

    def trace(self, numbers: Depths) -> list[int]:
        return trace(numbers)
