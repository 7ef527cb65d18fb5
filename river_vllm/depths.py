"""Exit layers on their way from the worker to the response.

A step reports one signed number per request: ``+l`` where the token came out of a decode step
that ran *l* backbone layers, ``-l`` where it came out of the prompt's last row, with a
mark where the token was held on the backbone because leaving would not have paid. The numbers ride
in vLLM's per-step ``routed_experts`` array, which its front end concatenates over a choice's life,
trims at stop strings and hands over when the choice finishes; River has no other use for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from river_vllm.request import RiverSettings

Depths = npt.NDArray[np.int16]

_HELD = 1 << 12
"""The mark; more layers than any model has."""


def signed_depth(exit_layer: int, decode: bool, held: bool = False) -> int:
    """The number that a step reports for a request."""
    depth = exit_layer | _HELD if held else exit_layer
    return depth if decode else -depth


_ATTRIBUTE = "river"
"""Extra attribute of vLLM's ``ModelRunnerOutput``, a plain dataclass that is pickled whole."""


def attach(output: Any, depths: dict[str, int]) -> Any:
    """Put ``depths`` (request id → signed depth) on what a runner's ``sample_tokens`` returns.

    vLLM's asynchronous output holds the final one in ``_model_runner_output``
    (``v1/worker/gpu_model_runner.py``).
    """
    if output is not None:
        setattr(getattr(output, "_model_runner_output", output), _ATTRIBUTE, depths)
    return output


def depths_of(output: Any) -> dict[str, int]:
    """What ``attach`` put there; empty for a step without a forward pass."""
    return getattr(output, _ATTRIBUTE, None) or {}


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

    def add(self, depths: Depths) -> None:
        decoded = depths[depths > 0]
        self.held += int(np.count_nonzero(decoded & _HELD))
        values, counts = np.unique(decoded & ~_HELD, return_counts=True)
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

    def by_layer(self, num_layers: int) -> Counter[int]:
        """Decode tokens by the backbone layers that they ran."""
        return self.layers

    def report(self, settings: RiverSettings, num_layers: int) -> dict[str, Any]:
        """What the ``river`` object of a response says of them; ``server/http/openapi.py``
        describes it."""
        mean = self.mean_exit_layer
        return {
            "threshold": settings.threshold,
            "num_layers": num_layers,
            "tokens": self.tokens,
            "mean_exit_layer": None if mean is None else round(mean, 3),
            "exit_layers": {str(layer): count for layer, count in sorted(self.layers.items())},
            "held": self.held,
        }


def trace(depths: Depths) -> list[int]:
    """One exit layer per token, in order."""
    layers: list[int] = (np.abs(depths) & ~_HELD).tolist()
    return layers
