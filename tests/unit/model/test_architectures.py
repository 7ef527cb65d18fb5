"""Names of architectures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm.errors import UnsupportedModelError
from river_vllm.model.architectures import ARCHITECTURES, FAMILIES, river_architecture, why_not


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_prefix_is_there_once(name: str) -> None:
    assert river_architecture(name) == f"River{name}"
    assert river_architecture(f"River{name}") == f"River{name}"


@pytest.mark.parametrize("name", ["BloomForCausalLM", "River", "", "llamaforcausallm"])
def test_what_was_never_tried_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        river_architecture(name)
    assert str(error.value) == (
        f"architecture '{name}' is not supported: it has not been tried with River "
        "('river-vllm models' lists what is); 'vllm serve' without settings of River's serves it"
    )


UNTRIED = "it has not been tried with River"


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"n_routed_experts": 64, "kv_lora_rank": 512}, "mixture of experts"),
        ({"num_experts": 0, "layer_types": ["full_attention", "sliding_attention"]}, UNTRIED),
        ({"layer_types": ["linear_attention", "full_attention"]}, "state-space"),
        ({"layers_block_type": ["mamba", "attention"], "num_experts": 16}, "state-space"),
        ({"layer_types": ["conv", "full_attention"]}, "state-space or convolution"),
        ({"layer_types": None, "state_size": 16}, "state-space"),
        ({"kv_lora_rank": 256}, "latent attention"),
        ({"kv_lora_rank": None}, UNTRIED),
        ({}, UNTRIED),
    ],
    ids=str,
)
def test_what_its_shape_says_is_the_reason(shape: dict[str, Any], reason: str) -> None:
    config = SimpleNamespace(**shape)
    assert why_not(config).startswith(reason)
    # The language model inside a multimodal one.
    assert why_not(SimpleNamespace(text_config=config)).startswith(reason)
    with pytest.raises(UnsupportedModelError, match=f"'NewForCausalLM' is not supported: {reason}"):
        river_architecture("NewForCausalLM", config)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        *((name, "mixture of experts") for name in ("mixtral", "qwen3_moe", "deepseek_v3", "dbrx")),
        *((name, "state-space") for name in ("jamba", "mamba2", "falcon_h1", "lfm2", "qwen3_next")),
        ("minicpm3", "latent attention"),
        ("gpt2", UNTRIED),
        ("llama", UNTRIED),
    ],
)
def test_transformers_own_configurations_say_it(model_type: str, reason: str) -> None:
    from transformers import AutoConfig

    assert why_not(AutoConfig.for_model(model_type)).startswith(reason)


def test_no_architecture_is_listed_twice() -> None:
    assert len(ARCHITECTURES) == len(FAMILIES)


def test_vllm_has_every_architecture() -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    assert set(ARCHITECTURES) <= set(ModelRegistry.models)


@pytest.mark.parametrize("name", ["Llama3.2-1B", "Llama3.1-8B", "Phi4-mini", "Ministral3-8B"])
def test_the_papers_models_are_named(name: str) -> None:
    assert sum(name in family.models for family in FAMILIES) == 1
