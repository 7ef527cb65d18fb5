"""The architectures that River carries, by the name in a checkpoint's ``config.json``.

One mechanism serves them all. The table holds the tested ones, and whether a decoder layer's
``residual`` argument is part of its state, which the layer's structure does not show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from river_vllm.config import PREFIX
from river_vllm.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture that River carries.

    Attributes:
        architecture: as in a checkpoint's ``config.json``.
        models: checkpoints of this architecture, for people.
        notes: special features of its layers.
        stale_residual: whether the decoder layers take a ``residual`` that they never read:
            their hidden states are the whole residual stream.
    """

    architecture: str
    models: str
    notes: str = ""
    stale_residual: bool = False


_TRANSFORMERS = "vLLM runs it through its Transformers backend"
_PARALLEL = "attention and MLP in parallel"
_POST_NORM = "norms after attention and MLP"
_SANDWICH = "norms before and after attention and MLP"
_PICTURES = "image encoder on the backbone"

FAMILIES: tuple[Family, ...] = (
    Family(
        "LlamaForCausalLM",
        "Llama 2, 3, 3.1, 3.2 and 3.3 (the paper's Llama3.2-1B and Llama3.1-8B), SmolLM2, Yi, "
        "TinyLlama, DeepSeek-R1-Distill-Llama",
    ),
    Family("MistralForCausalLM", "Mistral 7B, Mistral-Nemo, Ministral 8B (2410)"),
    Family("Ministral3ForCausalLM", "the language model of Ministral 3 by itself"),
    Family(
        "Mistral3ForConditionalGeneration",
        "Ministral 3 3B, 8B (the paper's Ministral3-8B) and 14B, Mistral Small 3.1",
        f"{_PICTURES}; the checkpoint must be bf16",
    ),
    Family(
        "Phi3ForCausalLM",
        "Phi-3, Phi-3.5-mini, Phi-4, Phi-4-mini (the paper's Phi4-mini)",
    ),
    Family("Qwen2ForCausalLM", "Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen", "biases"),
    Family("Qwen3ForCausalLM", "Qwen3 (dense)", "norms on queries and keys"),
    Family("Qwen2_5_VLForConditionalGeneration", "Qwen2.5-VL 3B to 72B", f"biases; {_PICTURES}"),
    Family(
        "Qwen3VLForConditionalGeneration",
        "Qwen3-VL 2B to 32B (dense)",
        f"norms on queries and keys; {_PICTURES}",
    ),
    Family("GemmaForCausalLM", "Gemma"),
    Family("Gemma2ForCausalLM", "Gemma 2", f"{_SANDWICH}, capped logits, sliding windows"),
    Family("Gemma3ForCausalLM", "Gemma 3 270M and 1B", f"{_SANDWICH}, sliding windows"),
    Family(
        "Gemma3ForConditionalGeneration",
        "Gemma 3 4B, 12B and 27B, MedGemma 4B",
        f"{_SANDWICH}, sliding windows; {_PICTURES}",
    ),
    Family("GraniteForCausalLM", "Granite 3.0 to 3.3", "multiplier on each residual branch"),
    Family("OlmoForCausalLM", "OLMo", f"norms without weights; {_TRANSFORMERS}"),
    Family("Olmo2ForCausalLM", "OLMo 2", f"{_POST_NORM}; {_TRANSFORMERS}"),
    Family("Olmo3ForCausalLM", "OLMo 3", f"{_POST_NORM}, sliding windows; {_TRANSFORMERS}"),
    Family("SmolLM3ForCausalLM", "SmolLM3", f"layers without positions; {_TRANSFORMERS}"),
    Family("Starcoder2ForCausalLM", "StarCoder2", f"layer norms, biases; {_TRANSFORMERS}"),
    Family("CohereForCausalLM", "Command R, Aya 23", _PARALLEL, stale_residual=True),
    Family("Exaone4ForCausalLM", "EXAONE 4.0", _POST_NORM, stale_residual=True),
    Family("GlmForCausalLM", "GLM-4 9B (HF format), GLM-Edge", _TRANSFORMERS),
    Family("Glm4ForCausalLM", "GLM-4-0414", _SANDWICH),
    Family("NemotronForCausalLM", "Nemotron-4, Minitron", "layer norms, squared ReLU"),
    Family("ArceeForCausalLM", "AFM-4.5B", f"squared ReLU; {_TRANSFORMERS}"),
    Family("Ernie4_5ForCausalLM", "ERNIE 4.5 0.3B"),
    Family("SeedOssForCausalLM", "Seed-OSS", _TRANSFORMERS),
    Family("HunYuanDenseV1ForCausalLM", "Hunyuan (dense)", _TRANSFORMERS),
    Family("PhiForCausalLM", "Phi-1.5, Phi-2", f"{_PARALLEL}, biases; {_TRANSFORMERS}"),
)

ARCHITECTURES: dict[str, Family] = {family.architecture: family for family in FAMILIES}


def river_architecture(architecture: str, config: Any = None) -> str:
    """``LlamaForCausalLM`` → ``RiverLlamaForCausalLM``.

    Raises:
        UnsupportedModelError: River does not carry the architecture; ``config``, the checkpoint's
            transformers configuration, tells why.
    """
    name = architecture.removeprefix(PREFIX)
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"architecture '{architecture}' is not supported: {why_not(config)} "
            "('river-vllm models' lists what is)"
        )
    return PREFIX + name


_STATE_LAYERS = {"conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba", "recurrent"}
_STATE_SIZES = (
    "state_size",
    "ssm_state_size",
    "mamba_d_state",
    "linear_attn_config",
    "conv_L_cache",
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def why_not(config: Any) -> str:
    """Why River does not carry a model, as far as its transformers configuration, if any, tells."""
    text = getattr(config, "text_config", None) or config
    parts = (text, getattr(text, "ffn_config", None))

    def values(*names: str) -> list[Any]:
        found = (getattr(part, name, None) for part in parts for name in names)
        return [value for value in found if value]

    layers = {kind for kinds in values("layer_types", "layers_block_type") for kind in kinds}
    if layers & _STATE_LAYERS or values(*_STATE_SIZES):
        return "state-space or convolution layers: they have no K/V that an exit river could write"
    if values(*_EXPERTS):
        return "mixture of experts: experts are no linear projections that every token runs"
    if values("kv_lora_rank"):
        return "latent attention: its K/V come out of projections of another shape"
    return "it has not been tried with River"
