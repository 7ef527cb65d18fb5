"""Upper bound of the speed-up of a mean exit layer, by the bytes of weights that a token reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of one decoder layer and of the LM head, each for the backbone and for the river.

    With one token a step the time goes into reading weights, so the ratio of bytes bounds the
    speed-up. Norms, attention and the engine's own work add to the time.
    """

    backbone: float
    river: float
    head: float
    river_head: float
    num_layers: int

    @classmethod
    def of(cls, engine: dict[str, Any], head: float, group_size: int) -> WeightBytes:
        """The bytes in ``engine``; in 4 bits each group has a bf16 scale and zero point.

        Args:
            engine: its worker's report (``river_info``).
            head: bytes of the LM head on that worker.
            group_size: weights that share a scale.
        """
        held = engine["resident_layers"] + len(engine["fetched_layers"])
        backbone = engine["backbone_bytes"] / held
        share = (0.5 + 4 / group_size) / 2
        river_head = head * share if engine["lm_head"] == "river" else head
        return cls(backbone, backbone * share, head, river_head, engine["num_layers"])

    def speedup(self, mean_exit_layer: float) -> float:
        """Bound of the speed-up over the backbone alone."""
        whole = self.num_layers * self.backbone + self.head
        rest = self.num_layers - mean_exit_layer
        return whole / (mean_exit_layer * self.backbone + rest * self.river + self.river_head)
