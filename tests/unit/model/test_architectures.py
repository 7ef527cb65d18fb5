"""Names of architectures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm.errors import UnsupportedModelError
from river_vllm.model.architectures import ARCHITECTURES, river_architecture, why_not


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_prefix_is_there_once(name: str) -> None:
    assert river_architecture(name) == f"River{name}"
    assert river_architecture(f"River{name}") == f"River{name}"


UNTRIED = "it has not been tried with River"


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"n_routed_experts": 64, "kv_lora_rank": 512}, "mixture of experts"),
        ({"num_experts": 0, "layer_types": ["full_attention", "sliding_attention"]}, UNTRIED),
        ({"layer_types": ["linear_attention", "full_attention"]}, "state-space"),
        ({"layer_types": ["conv", "full_attention"]}, "state-space or convolution"),
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
    with pytest.raises(UnsupportedModelError, match=f"'NewForCausalLM' .*{reason}") as error:
        river_architecture("NewForCausalLM", config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("qwen3_moe", "mixture of experts"),
        ("jamba", "state-space"),
        ("minicpm3", "latent attention"),
        ("gpt2", UNTRIED),
    ],
)
def test_transformers_own_configurations_say_it(model_type: str, reason: str) -> None:
    from transformers import AutoConfig

    assert why_not(AutoConfig.for_model(model_type)).startswith(reason)


def test_vllm_has_every_architecture() -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    assert set(ARCHITECTURES) <= set(ModelRegistry.models)
