"""What the user asks for: a loss in [0, 1] of each prompt, and a limit for its expectation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from river_vllm.calibration.observer import Measured

Metric = Literal["agreement", "kl", "depth"]

KL_CLIP = 1.0
"""Nats that a token's divergence counts at most."""


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for one expectation.

    Attributes:
        metric: ``agreement``, how often the likeliest token is the backbone's; ``kl``,
            KL(backbone ‖ river) in nats, each token's clipped at ``KL_CLIP``; or ``depth``, the
            mean exit layer.
        value: the least agreement, or the largest divergence or mean exit layer.
        num_layers: decoder layers L of the model.
    """

    metric: Metric
    value: float
    num_layers: int

    @property
    def limit(self) -> float:
        """Largest mean loss that keeps the target."""
        if self.metric == "agreement":
            return 1.0 - self.value
        return self.value / (KL_CLIP if self.metric == "kl" else self.num_layers)

    def token_loss(self, measured: Measured) -> npt.NDArray[np.float64]:
        """Of each token, in [0, 1]."""
        if self.metric == "agreement":
            return 1.0 - measured.agrees.astype(np.float64)
        if self.metric == "kl":
            return clipped_kl(measured) / KL_CLIP
        return measured.exit_layer.astype(np.float64) / self.num_layers

    def figure(self, loss: float) -> float:
        """A mean loss in the unit of ``value``."""
        if self.metric == "agreement":
            return 1.0 - loss
        return loss * (KL_CLIP if self.metric == "kl" else self.num_layers)

    def describe(self) -> str:
        if self.metric == "agreement":
            return f"agreement with the backbone of at least {self.value:.2%}"
        if self.metric == "kl":
            return f"KL(backbone ‖ river), clipped at {KL_CLIP:g}, of at most {self.value:g} nats"
        return f"mean exit layer of at most {self.value:g} of {self.num_layers}"


def clipped_kl(measured: Measured) -> npt.NDArray[np.float64]:
    """Of each token, in nats."""
    return np.minimum(measured.kl.astype(np.float64), KL_CLIP)


def prompt_losses(measured: Measured, token_loss: npt.NDArray[np.float64]) -> dict[int, float]:
    """Mean of each text's token losses, by the text's number."""
    texts, index = np.unique(measured.tokens[:, 0], return_inverse=True)
    means = np.bincount(index, weights=token_loss) / np.bincount(index)
    return dict(zip(texts.tolist(), means.tolist(), strict=True))
