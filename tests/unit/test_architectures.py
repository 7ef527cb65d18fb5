"""Names of architectures."""

from __future__ import annotations

import pytest

from river_vllm.errors import UnsupportedModelError
from river_vllm.models.architectures import ARCHITECTURES, FAMILIES, river_architecture
from river_vllm.models.refused import REFUSED


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
        "('river-vllm models' lists what is); 'vllm serve' serves it without a river"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MixtralForCausalLM", "mixture of experts"),
        ("Qwen3MoeForCausalLM", "mixture of experts"),
        ("JambaForCausalLM", "state-space"),
        ("RiverQwen3NextForCausalLM", "state-space"),
        ("MiniCPM3ForCausalLM", "latent attention"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(name: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{name}' is not supported: {reason}"):
        river_architecture(name)


def test_no_architecture_is_listed_twice() -> None:
    assert len(ARCHITECTURES) == len(FAMILIES)
    assert not ARCHITECTURES.keys() & REFUSED.keys()


def test_vllm_has_every_architecture() -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    assert {*ARCHITECTURES, *REFUSED} <= set(ModelRegistry.models)


def test_every_text_model_of_experts_is_refused_by_name() -> None:
    """A name that tells: vLLM's own classes and those of its Transformers backend."""
    from vllm.model_executor.models import registry

    text = {*registry._TEXT_GENERATION_MODELS, *registry._TRANSFORMERS_SUPPORTED_MODELS}
    assert {name for name in text if "moe" in name.lower()} <= REFUSED.keys()


@pytest.mark.parametrize("name", ["Llama3.2-1B", "Llama3.1-8B", "Phi4-mini", "Ministral3-8B"])
def test_the_papers_models_are_named(name: str) -> None:
    assert sum(name in family.models for family in FAMILIES) == 1
