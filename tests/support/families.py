"""Tiny random checkpoints of every architecture, and transformers' own model of each as reference.

The reference serves all of them: transformers runs the backbone over the prompt, then a copy of
itself, whose linears from the exit layer on hold the dequantised 4-bit weights, runs the answer on
the K/V cache that the first one left. That is what a river is, written without River.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from river_vllm.weights.quantizers import QUANTIZERS, fitting_group_size

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
    config = _config(cls.config_class, architecture)
    torch.manual_seed(seed)
    model = cls(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
        elif parameter.ndim == 1 and parameter.numel() > 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def _config(cls: Any, architecture: str) -> Any:
    options = {**_SMALL, **OPTIONS.get(architecture, {})}
    if architecture == "Mistral3ForConditionalGeneration":
        return _mistral3(cls)
    return cls(**options)


def _mistral3(cls: Any) -> Any:
    from transformers import Ministral3Config, PixtralVisionConfig

    vision = PixtralVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = Ministral3Config(**_SMALL, **_HEADS)
    return cls(vision_config=vision, text_config=text, image_token_index=10)


class FamilyReference:
    """transformers' model of a checkpoint in float32, teacher-forced."""

    def __init__(self, architecture: str, folder: Path) -> None:
        import transformers

        cls = getattr(transformers, architecture)
        self.backbone = cls.from_pretrained(folder, dtype=torch.float32).eval()
        # An engine on vLLM's Transformers backend decorates transformers' own class for
        # compilation (compilation/decorators.py), and the decoration asks for this attribute.
        for module in self.backbone.modules():
            module.do_not_compile = True
        self._rivers: dict[int, Any] = {}

    @torch.inference_mode()
    def logits(self, prompt: list[int], answer: list[int], exit_layer: int) -> torch.Tensor:
        """Logits after the prompt and after each of ``answer``, whose tokens exit.

        Returns:
            float32 ``[1 + len(answer), vocabulary]``.
        """
        first = self.backbone(torch.tensor([prompt]), use_cache=True)
        river = self._river(exit_layer)
        rest = river(torch.tensor([answer]), past_key_values=first.past_key_values, use_cache=True)
        return torch.cat([first.logits[0, -1:], rest.logits[0]])

    @torch.inference_mode()
    def similarities(self, tokens: list[int]) -> torch.Tensor:
        """cos(h^(l−1), h^(l)) for l = 1 … L−1, float32 ``[L − 1, tokens]``."""
        out = self.backbone(torch.tensor([tokens]), output_hidden_states=True)
        # The last entry is past the final norm.
        states = torch.stack(out.hidden_states[:LAYERS])[:, 0]
        return torch.nn.functional.cosine_similarity(states[:-1], states[1:], dim=-1)

    def _river(self, exit_layer: int) -> Any:
        if exit_layer not in self._rivers:
            model = copy.deepcopy(self.backbone)
            for layer in decoder_layers(model)[exit_layer:]:
                for module in layer.modules():
                    if isinstance(module, torch.nn.Linear):
                        weight = module.weight.data.bfloat16()
                        group = fitting_group_size(weight.shape[1], GROUP_SIZE)
                        module.weight.data = QUANTIZERS["rtn"](weight, group).dequantize()
            self._rivers[exit_layer] = model
        return self._rivers[exit_layer]


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The one list of decoder layers of transformers' model."""
    (layers,) = (
        m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == LAYERS
    )
    return layers
