"""Exit mode: a token leaves the backbone when its state has settled.

A step reports one signed number for each request. ``+l``: its token comes from a decode step that
ran *l* backbone layers. ``-l``: it comes from the prompt's last row. ``HELD`` marks a token held on
the backbone because leaving would not have paid.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from river_vllm.modes.mode import Numbers

if TYPE_CHECKING:
    from river_vllm.config import RiverConfig
    from river_vllm.request import RiverSettings
    from river_vllm.step.table import Head

HELD = 1 << 12
"""The mark; more layers than any model has."""


def signed_depth(exit_layer: int, decode: bool, held: bool = False) -> int:
    """The number that a step reports for a request."""
    depth = exit_layer | HELD if held else exit_layer
    return depth if decode else -depth


class ExitMode:
    """Answers with exits: fast and approximate, tuned by the threshold τ.

    Requests on the backbone alone have this mode too: none of their tokens leaves.
    """

    exact: ClassVar[bool] = True
    schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "description": "How deep the tokens of this response ran.",
        "properties": {
            "enabled": {"type": "boolean"},
            "mode": {"type": "string", "enum": ["exit", "backbone"]},
            "threshold": {"type": "number"},
            "num_layers": {"type": "integer", "description": "L: a token at L never exited"},
            "tokens": {"type": "integer", "description": "tokens generated in decode steps"},
            "mean_exit_layer": {"type": ["number", "null"]},
            "exit_layers": {
                "type": "object",
                "description": "exit layer (backbone layers run) to number of tokens",
                "additionalProperties": {"type": "integer"},
            },
            "held": {
                "type": "integer",
                "description": "tokens that ran on only because leaving would not have paid",
            },
        },
    }

    def head(self, config: RiverConfig) -> Head | None:
        return "river" if config.lm_head == "river" else None

    def leaves_kv(self, settings: RiverSettings) -> bool:
        return settings.may_exit

    def numbers(self, tokens: int, *, depth: int, drafted: int, kept: int, decode: bool) -> Numbers:
        return np.full(tokens, depth, dtype=np.int16)

    def summary(self) -> ExitSummary:
        return ExitSummary()

    def trace(self, numbers: Numbers) -> list[int]:
        """One exit layer for each token, in order."""
        layers: list[int] = (np.abs(numbers) & ~HELD).tolist()
        return layers


EXIT = ExitMode()


@dataclass(slots=True)
class ExitSummary:
    """Exit layers of one or more choices."""

    layers: Counter[int] = field(default_factory=Counter)
    """Exit layer → decode tokens."""
    held: int = 0
    """Decode tokens that were held on the backbone."""
    drafted: int = 0
    accepted: int = 0
    """Nothing is drafted."""

    def add(self, numbers: Numbers) -> None:
        decoded = numbers[numbers > 0]
        self.held += int(np.count_nonzero(decoded & HELD))
        values, counts = np.unique(decoded & ~HELD, return_counts=True)
        for layer, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.layers[layer] += count

    @property
    def tokens(self) -> int:
        """Tokens that were generated in decode steps."""
        return self.layers.total()

    @property
    def backbone_layers(self) -> int:
        """Sum of the backbone layers that these tokens ran."""
        return sum(layer * count for layer, count in self.layers.items())

    @property
    def mean_exit_layer(self) -> float | None:
        return self.backbone_layers / self.tokens if self.tokens else None

    def by_layer(self, num_layers: int) -> Counter[int]:
        """Decode tokens by the backbone layers that they ran."""
        return self.layers

    def report(self, settings: RiverSettings, num_layers: int) -> dict[str, Any]:
        """The exit layers, for the ``river`` object of a response (``ExitMode.schema``)."""
        mean = self.mean_exit_layer
        return {
            "threshold": settings.threshold,
            "num_layers": num_layers,
            "tokens": self.tokens,
            "mean_exit_layer": None if mean is None else round(mean, 3),
            "exit_layers": {str(layer): count for layer, count in sorted(self.layers.items())},
            "held": self.held,
        }
