"""Exit layers on their way from the worker to the response.

A step reports one signed number per request: ``+l`` where the token came out of a decode step
that ran *l* backbone layers, ``-l`` where it came out of the prompt's last row. The numbers ride
in vLLM's per-step ``routed_experts`` array, which its front end concatenates over a choice's life,
trims at stop strings and hands over when the choice finishes; River has no other use for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Depths = npt.NDArray[np.int16]


def signed_depth(exit_layer: int, decode: bool) -> int:
    """The number that a step reports for a request."""
    return exit_layer if decode else -exit_layer


@dataclass(slots=True)
class ExitSummary:
    """Exit layers of one or more choices."""

    layers: Counter[int] = field(default_factory=Counter)
    """Exit layer → decode tokens."""

    def add(self, depths: Depths) -> None:
        values, counts = np.unique(depths[depths > 0], return_counts=True)
        for layer, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.layers[layer] += count

    @property
    def tokens(self) -> int:
        """Tokens that were generated in decode steps."""
        return self.layers.total()

    @property
    def backbone_layers(self) -> int:
        """Backbone layers that those tokens ran, summed."""
        return sum(layer * count for layer, count in self.layers.items())

    @property
    def mean_exit_layer(self) -> float | None:
        return self.backbone_layers / self.tokens if self.tokens else None


def trace(depths: Depths) -> list[int]:
    """One exit layer per token, in order."""
    layers: list[int] = np.abs(depths).tolist()
    return layers
