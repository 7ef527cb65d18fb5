"""The speed-up of a mean exit layer, as far as the bytes of weights that a token reads bound it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of one decoder layer in both precisions and of the LM head, and the number of layers.

    With one token a step the time goes into reading weights, so the ratio of bytes bounds the
    speed-up; norms, attention and the engine's own work come on top.
    """

    backbone: float
    river: float
    head: float
    num_layers: int

    @classmethod
    def of(cls, hf_config: Any, group_size: int) -> WeightBytes:
        """Of a model like Llama or Qwen2; in 4 bits each group has a bf16 scale and zero point."""
        hidden = hf_config.hidden_size
        heads = hf_config.num_attention_heads
        kv_heads = getattr(hf_config, "num_key_value_heads", None) or heads
        head_size = getattr(hf_config, "head_dim", None) or hidden // heads
        attention = hidden * head_size * (2 * heads + 2 * kv_heads)
        weights = attention + 3 * hidden * hf_config.intermediate_size
        return cls(
            2.0 * weights,
            weights * (0.5 + 4 / group_size),
            2.0 * hf_config.vocab_size * hidden,
            hf_config.num_hidden_layers,
        )

    def speedup(self, mean_exit_layer: float) -> float:
        """Over the backbone alone."""
        whole = self.num_layers * self.backbone + self.head
        rest = self.num_layers - mean_exit_layer
        return whole / (mean_exit_layer * self.backbone + rest * self.river + self.head)
