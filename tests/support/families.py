"""Tiny random checkpoints of every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

LAYERS = 4
VOCABULARY = 512
GROUP_SIZE = 64

_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_HEADS = {"head_dim": 32}
_TIED = {"tie_word_embeddings": True}
_WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}

OPTIONS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "MistralForCausalLM": {**_HEADS, "sliding_window": None},
    "Ministral3ForCausalLM": _HEADS,
    "Phi3ForCausalLM": {"partial_rotary_factor": 0.5},
    "Qwen3ForCausalLM": _HEADS,
    # Its embeddings are scaled up: with smaller weights a token would only repeat itself.
    "GemmaForCausalLM": {
        **_HEADS,
        **_TIED,
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.16,
    },
    "Gemma2ForCausalLM": {**_HEADS, **_TIED, **_WINDOW, "query_pre_attn_scalar": 32},
    # Two of a kind one after the other, as in its checkpoints.
    "Gemma3ForCausalLM": {
        **_HEADS,
        **_TIED,
        "sliding_window": 16,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2,
        "query_pre_attn_scalar": 32,
    },
    "GraniteForCausalLM": {
        "residual_multiplier": 0.5,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
    },
    "Olmo3ForCausalLM": _WINDOW,
    "SmolLM3ForCausalLM": {"no_rope_layers": [1, 1, 1, 0], "use_sliding_window": False},
    "Starcoder2ForCausalLM": {"sliding_window": None},
    "CohereForCausalLM": {"logit_scale": 1.0, "use_qk_norm": False, **_TIED},
    "Exaone4ForCausalLM": {**_HEADS, **_WINDOW, "sliding_window_pattern": "LG"},
    "GlmForCausalLM": _HEADS,
    "Glm4ForCausalLM": _HEADS,
    "Ernie4_5ForCausalLM": _HEADS,
    "SeedOssForCausalLM": _HEADS,
    "HunYuanDenseV1ForCausalLM": _HEADS,
}
"""What differs from the common small sizes."""


def make_checkpoint(architecture: str, folder: Path, seed: int = 0) -> Path:
    """A random bf16 checkpoint; norms and biases are random too, so that none can be left out."""
    import transformers

    cls = getattr(transformers, architecture)
    make_config = _mistral3 if architecture.startswith("Mistral3") else cls.config_class
    torch.manual_seed(seed)
    model = cls(make_config(**{**_SMALL, **OPTIONS.get(architecture, {})}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
        elif parameter.ndim == 1 and parameter.numel() > 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def _mistral3(**text: Any) -> Any:
    from transformers import Ministral3Config, Mistral3Config, PixtralVisionConfig

    vision = PixtralVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text_config = Ministral3Config(**text, **_HEADS)
    return Mistral3Config(vision_config=vision, text_config=text_config, image_token_index=10)
