"""A policy: the settings that decide when a token leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from river_vllm.request import RiverSettings

NEVER = 1.0 - 1e-9
"""A τ below 1 that no similarity exceeds (as float32 it is 1.0). With it the rows of the backbone's
own pass are routed, and so observed, and none leaves."""


@dataclass(frozen=True, slots=True)
class Policy:
    """τ and the fewest backbone layers, as in ``RiverConfig``."""

    threshold: float
    min_layers: int

    @classmethod
    def backbone(cls) -> Policy:
        return cls(NEVER, 1)

    def settings(self) -> RiverSettings:
        return RiverSettings(True, self.threshold, self.min_layers)

    def exit_layers(self, similarity: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
        """Exit layers of tokens with these similarities.

        An exit changes the K/V that later tokens read, and so their similarities; this leaves that
        out.

        Args:
            similarity: s after 1 … L−1 layers on the backbone, float32 ``[tokens, L − 1]``.

        Returns:
            int16 ``[tokens]``, L where a token never leaves.
        """
        layers = similarity.shape[1] + 1
        if self.threshold <= -1.0:
            return np.full(len(similarity), self.min_layers, dtype=np.int16)
        leaves = similarity > np.float32(self.threshold)
        leaves[:, : self.min_layers - 1] = False
        first = np.where(leaves.any(axis=1), leaves.argmax(axis=1) + 1, layers)
        found: npt.NDArray[np.int16] = first.astype(np.int16)
        return found

    def as_config(self) -> dict[str, Any]:
        """The settings of a ``river_config``."""
        return {"threshold": self.threshold, "min_layers": self.min_layers}
