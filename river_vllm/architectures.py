"""The models that River serves and those with exits, by a checkpoint's ``config.json``.

One mechanism serves all dense decoders: the backbone verifies each drafted token. An exit needs
the residual stream, and a layer's structure does not show where that is. So exits are for the
architectures of the table, on which tests have compared it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture that has exits.

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


def no_exits(architecture: str, quantization: Any) -> str | None:
    """Why no token of a model can leave the backbone; None if tokens can.

    Args:
        architecture: as in the checkpoint's ``config.json``.
        quantization: its ``quantization_config``.
    """
    if in_4_bit(quantization):
        return (
            "the checkpoint's own weights are in 4 bit, so there is no more precise backbone to "
            "leave"
        )
    if architecture not in ARCHITECTURES:
        return (
            f"exits have not been proven for {architecture} ('river-vllm models' lists the "
            "architectures that have them)"
        )
    return None


def in_4_bit(quantization: Any) -> bool:
    """Whether a checkpoint's ``quantization_config`` is of 4-bit weights that River can serve."""
    if not isinstance(quantization, Mapping):
        return False
    method = quantization.get("quant_method")
    if method in ("awq", "gptq"):
        return quantization.get("bits", quantization.get("w_bit")) == 4
    return method == "compressed-tensors" and quantization.get("format") == "pack-quantized"


def in_fp8(quantization: Any) -> bool:
    """Whether a checkpoint's ``quantization_config`` is of FP8 weights."""
    if not isinstance(quantization, Mapping):
        return False
    method, form = quantization.get("quant_method"), quantization.get("format")
    return method == "fp8" or (method == "compressed-tensors" and form == "float-quantized")


Values = Callable[..., list[Any]]
"""The values of the first arguments' fields that a configuration has, without empty ones."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form of model that River refuses.

    Attributes:
        name, reason: for people.
        shown_by: whether a configuration with these values is of this form.
    """

    name: str
    reason: str
    shown_by: Callable[[Values], bool]


_STATE_LAYERS = {"conv", "hybrid", "hybrid_sliding", "linear_attention", "mamba", "recurrent"}
_STATE_SIZES = (
    "state_size",
    "ssm_state_size",
    "mamba_d_state",
    "linear_attn_config",
    "conv_L_cache",
)
_EXPERTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_routed_experts",
    "moe_num_experts",
)


def _has_state(values: Values) -> bool:
    layers = {kind for kinds in values("layer_types", "layers_block_type") for kind in kinds}
    return bool(layers & _STATE_LAYERS or values(*_STATE_SIZES))


def _has_experts(values: Values) -> bool:
    counts = (count for found in values(*_EXPERTS) for count in _listed(found))
    return any(count > 1 for count in counts)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


REFUSED: tuple[Form, ...] = (
    Form(
        "encoder-decoder",
        "its decoder attends to an encoder's K/V, which no exit river could write",
        lambda values: bool(values("is_encoder_decoder")),
    ),
    Form(
        "state-space or convolution layers",
        "they have no K/V that an exit river could write",
        _has_state,
    ),
    Form(
        "mixture of experts",
        "experts are no linear projections that every token runs",
        _has_experts,
    ),
    Form(
        "latent attention",
        "its K/V come out of projections of another shape",
        lambda values: bool(values("kv_lora_rank")),
    ),
    Form(
        "per-layer embeddings",
        "vLLM keeps them in a buffer by row of its own step, and a draft has other rows",
        lambda values: bool(values("hidden_size_per_layer_input")),
    ),
)


def why_not(config: Any) -> str | None:
    """Why River refuses a model, as its transformers configuration tells; None if nothing does."""
    text = getattr(config, "text_config", None) or config
    parts = (text, getattr(text, "ffn_config", None))

    def values(*names: str) -> list[Any]:
        found = (getattr(part, name, None) for part in parts for name in names)
        return [value for value in found if value]

    return next((f"{form.name}: {form.reason}" for form in REFUSED if form.shown_by(values)), None)
