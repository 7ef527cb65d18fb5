"""What the user asks for, as a loss in [0, 1] per prompt and a limit for its mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from river_vllm.calibration.observer import Measured

Metric = Literal["agreement", "kl", "depth"]

KL_CLIP = 1.0
"""Nats: a token's divergence counts as at most this much."""


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on one expectation.

    Attributes:
        metric: top-1 agreement with the backbone, KL(backbone ‖ river) in nats with each token's
            clipped at ``KL_CLIP``, or mean exit layer.
        value: agreement of at least, divergence of at most, exit layer of at most.
        num_layers: decoder layers L of the model.
    """

    metric: Metric
    value: float
    num_layers: int

    @property
    def limit(self) -> float:
        """Of the mean loss."""
        if self.metric == "agreement":
            return 1.0 - self.value
        return self.value / (KL_CLIP if self.metric == "kl" else self.num_layers)

    def token_loss(self, measured: Measured) -> npt.NDArray[np.float64]:
        """Of each token, in [0, 1]."""
        if self.metric == "agreement":
            return 1.0 - measured.agrees.astype(np.float64)
        if self.metric == "kl":
            return np.minimum(measured.kl.astype(np.float64), KL_CLIP) / KL_CLIP
        return measured.exit_layer.astype(np.float64) / self.num_layers

    def figure(self, loss: float) -> float:
        """A mean loss in the metric's own unit."""
        if self.metric == "agreement":
            return 1.0 - loss
        return loss * (KL_CLIP if self.metric == "kl" else self.num_layers)

    def describe(self) -> str:
        if self.metric == "agreement":
            return f"agreement with the backbone of at least {self.value:.2%}"
        if self.metric == "kl":
            return f"KL(backbone ‖ river), clipped at {KL_CLIP:g}, of at most {self.value:g} nats"
        return f"mean exit layer of at most {self.value:g} of {self.num_layers}"


def prompt_losses(measured: Measured, token_loss: npt.NDArray[np.float64]) -> dict[int, float]:
    """Mean loss of each text's tokens, by the text's number."""
    texts, index = np.unique(measured.tokens[:, 0], return_inverse=True)
    means = np.bincount(index, weights=token_loss) / np.bincount(index)
    return dict(zip(texts.tolist(), means.tolist(), strict=True))
