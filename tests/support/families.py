"""Tiny random checkpoints of every architecture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.pictures import ID, PATCH

LAYERS = 4
VOCABULARY = 512
GROUP_SIZE = 64
SAME_RIVER: dict[str, Any] = {
    "quantizer": "rtn",
    "group_size": GROUP_SIZE,
    "kernel": "torch",
    "cache_dir": "off",
}
"""River's settings with which such a checkpoint gets the same river on every CPU."""
EVERY_EXIT: dict[str, Any] = {"scope": "token", "max_rows": "all"}
"""Exits happen whether they pay or not."""
DRAFTS: dict[str, Any] = {"verify": 3, "draft": "fixed"}

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
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
_GEMMA3 = {
    # Two of a kind one after the other, as in its checkpoints.
    **_HEADS,
    **_TIED,
    "sliding_window": 16,
    "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2,
    "query_pre_attn_scalar": 32,
}

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
    # It has as many heads of keys, whatever its configuration says.
    "GPTNeoXForCausalLM": {"num_key_value_heads": 4},
    "Mistral3ForConditionalGeneration": _HEADS,
    "Phi3ForCausalLM": {"partial_rotary_factor": 0.5},
    "Qwen3ForCausalLM": _HEADS,
    # Sections of 16 pairs: frame, row and column.
    "Qwen2_5_VLForConditionalGeneration": {"rope_parameters": _MROPE},
    "Qwen3VLForConditionalGeneration": {
        **_HEADS,
        "rope_parameters": {**_MROPE, "mrope_interleaved": True},
    },
    # Its embeddings are scaled up: with smaller weights a token would only repeat itself.
    "GemmaForCausalLM": {
        **_HEADS,
        **_TIED,
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.16,
    },
    "Gemma2ForCausalLM": {**_HEADS, **_TIED, **_WINDOW, "query_pre_attn_scalar": 32},
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
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
    "Cohere2ForCausalLM": {"logit_scale": 1.0, **_TIED, **_WINDOW},
    "FalconForCausalLM": {**_TIED, "new_decoder_architecture": False, "bias": True},
    "StableLmForCausalLM": {"use_qkv_bias": True},
    "OPTForCausalLM": {**_TIED, "ffn_dim": 256, "word_embed_proj_dim": 128, "init_std": 0.08},
    "GPT2LMHeadModel": _TIED,
    "Gemma4ForCausalLM": {
        **_HEADS,
        **_TIED,
        **_WINDOW,
        "global_head_dim": 64,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "attention_k_eq_v": False,
        "use_bidirectional_attention": None,
    },
    "GraniteSWAForCausalLM": {
        "residual_multiplier": 0.5,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
    },
}
"""What differs from the common small sizes."""

_BRANCH_NORMS = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Rewritten:
    """A checkpoint of an architecture that transformers lacks, made from one that it has.

    Attributes:
        base: the architecture that transformers has.
        config: what ``config.json`` says beside it, with its ``model_type``.
        tensors: the tensors by the names that vLLM's class reads.
    """

    base: str
    config: dict[str, Any] = field(default_factory=dict)
    tensors: Callable[[Tensors], Tensors] = lambda tensors: tensors


def _random(like: torch.Tensor, std: float = 0.05) -> torch.Tensor:
    return (std * torch.randn(like.shape[0])).to(like.dtype)


def _orion(tensors: Tensors) -> Tensors:
    norms = {name: weight for name, weight in tensors.items() if name.endswith("norm.weight")}
    biases = {name.replace(".weight", ".bias"): _random(norms[name]) for name in norms}
    return tensors | biases


def _telechat2(tensors: Tensors) -> Tensors:
    made = {}
    for name, weight in tensors.items():
        own = name.replace("model.", "transformer.").replace(".layers.", ".h.")
        own = own.replace("embed_tokens", "word_embeddings").replace(".norm.", ".ln_f.")
        own = own.replace("self_attn", "self_attention").replace("q_proj", "query")
        if "v_proj" in name:
            continue
        if "k_proj" in name:
            # Head by head: its keys, then its values.
            values = tensors[name.replace("k_proj", "v_proj")]
            pair = weight.unflatten(0, (4, -1)), values.unflatten(0, (4, -1))
            own, weight = own.replace("k_proj", "key_value"), torch.cat(pair, dim=1).flatten(0, 1)
        if "o_proj" in name or "down_proj" in name:
            own = own.replace("o_proj", "dense")
            made[own.replace(".weight", ".bias")] = _random(weight)
        made[own] = weight
    return made


REWRITTEN: dict[str, Rewritten] = {
    "InternLM3ForCausalLM": Rewritten("LlamaForCausalLM"),
    "MiMoForCausalLM": Rewritten("Qwen2ForCausalLM", {"num_nextn_predict_layers": 1}),
    "OrionForCausalLM": Rewritten("LlamaForCausalLM", tensors=_orion),
    "TeleChat2ForCausalLM": Rewritten(
        "LlamaForCausalLM",
        {
            "num_key_value_heads": 4,
            "n_layer": LAYERS,
            "n_head": 4,
            "ffn_hidden_size": 256,
            "layer_norm_epsilon": 1e-6,
        },
        _telechat2,
    ),
}


def random_prompts(lengths: Iterable[int], seed: int = 3) -> list[dict[str, Any]]:
    """Prompts of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {"prompt_token_ids": torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()}
        for n in lengths
    ]


def make_checkpoint(architecture: str, folder: Path, seed: int = 0) -> Path:
    """A random bf16 checkpoint; norms and biases are random too, so that none can be left out."""
    if (made := REWRITTEN.get(architecture)) is not None:
        _make(made.base, folder, seed, made.config)
        file = folder / "model.safetensors"
        tensors = made.tensors(load_file(file))
        save_file({name: t.contiguous() for name, t in tensors.items()}, file, {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        changes = {"architectures": [architecture], **made.config}
        (folder / "config.json").write_text(json.dumps(config | changes))
        return folder
    return _make(architecture, folder, seed, OPTIONS.get(architecture, {}))


def _make(architecture: str, folder: Path, seed: int, options: dict[str, Any]) -> Path:
    import transformers

    cls = getattr(transformers, architecture)
    text = {**_SMALL, **options}
    torch.manual_seed(seed)
    if seeing := _SEEING.get(architecture):
        model = cls(seeing(text))
    else:
        model = cls(cls.config_class(**text))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
        elif name.endswith("mm_input_projection_weight"):  # Gemma 3's, zero before its training
            torch.nn.init.normal_(parameter, std=0.2)
        elif architecture.startswith("Gemma3ForCond") and name.endswith(_BRANCH_NORMS):
            parameter.data.add_(4.0)  # else a token repeats itself, whatever the picture
        elif parameter.ndim == 1 and parameter.numel() > 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(folder)
    if architecture == "Gemma3ForConditionalGeneration":
        # transformers 5 saves other names than published checkpoints have, and vLLM knows those.
        file = folder / "model.safetensors"
        weights = load_file(file).items()
        named = {k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in weights}
        save_file(named, file, {"format": "pt"})
    return folder


def _mistral3(text: dict[str, Any]) -> Any:
    from transformers import Ministral3Config, Mistral3Config, PixtralVisionConfig

    vision = PixtralVisionConfig(
        **_VISION, num_hidden_layers=1, num_attention_heads=2, image_size=112
    )
    text_config = Ministral3Config(**text)
    return Mistral3Config(
        vision_config=vision, text_config=text_config, image_token_index=ID["[IMG]"]
    )


def _gemma3(text: dict[str, Any]) -> Any:
    from transformers import Gemma3Config, Gemma3TextConfig, SiglipVisionConfig

    vision = SiglipVisionConfig(
        **_VISION, num_hidden_layers=1, num_attention_heads=2, image_size=112, vision_use_head=False
    )
    return Gemma3Config(
        text_config=Gemma3TextConfig(**text),
        vision_config=vision,
        mm_tokens_per_image=16,
        boi_token_index=ID["<start_of_image>"],
        eoi_token_index=ID["<end_of_image>"],
        image_token_index=ID["<image_soft_token>"],
        tie_word_embeddings=True,
    )


def _qwen2_5_vl(text: dict[str, Any]) -> Any:
    from transformers import Qwen2_5_VLConfig

    vision = {**_VISION, "depth": 2, "num_heads": 2, "out_hidden_size": 128}
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**vision, "window_size": 56, "fullatt_block_indexes": [1]},
        **_QWEN_TOKENS,
    )


def _qwen3_vl(text: dict[str, Any]) -> Any:
    from transformers import Qwen3VLConfig

    vision = {**_VISION, "depth": 3, "num_heads": 2, "out_hidden_size": 128}
    return Qwen3VLConfig(
        text_config=text,
        vision_config={**vision, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        **_QWEN_TOKENS,
    )


_VISION = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "patch_size": PATCH,
    "initializer_range": 0.2,
}
_QWEN_TOKENS = {
    "image_token_id": ID["<|image_pad|>"],
    "video_token_id": ID["<|video_pad|>"],
    "vision_start_token_id": ID["<|vision_start|>"],
    "vision_end_token_id": ID["<|vision_end|>"],
}
_SEEING = {
    "Mistral3ForConditionalGeneration": _mistral3,
    "Gemma3ForConditionalGeneration": _gemma3,
    "Qwen2_5_VLForConditionalGeneration": _qwen2_5_vl,
    "Qwen3VLForConditionalGeneration": _qwen3_vl,
}
"""Configurations of a language model and an encoder of pictures."""
