"""Model classes that are made on first use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from river_vllm.config import RiverConfig
from river_vllm.plugin import classes
from river_vllm.plugin.classes import river_class

CONFIG: Any = SimpleNamespace(
    additional_config={"river": {"threshold": 0.25}},
    model_config=SimpleNamespace(hf_config=SimpleNamespace()),
)


class Base(nn.Module):
    """Plays a model class of vLLM's."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.made_with = (vllm_config, prefix)


@pytest.fixture(autouse=True)
def attached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A river is the settings that it was made with."""

    def attach(model: Any, config: RiverConfig, vllm_config: Any, *_: Any) -> tuple[Any, Any]:
        assert model.made_with[0] is vllm_config, "the model is there before its river"
        return config, lambda: "info"

    monkeypatch.setattr(classes, "attach", attach)


def test_the_model_is_vllms_with_a_river_of_the_engines_settings() -> None:
    model: Any = river_class("RiverBase", Base)(vllm_config=CONFIG, prefix="p")  # type: ignore[call-arg]
    assert isinstance(model, Base)
    assert model.made_with == (CONFIG, "p")
    assert (model.river, model.river_info()) == (RiverConfig(threshold=0.25), "info")
    assert type(model).__name__ == "RiverBase"
    assert type(model).forward is Base.forward, "a forward pass of the model is vLLM's own"


def test_the_models_configuration_names_both_architectures() -> None:
    """vLLM's Transformers backend renames weights by the name that transformers knows."""
    hf_config = SimpleNamespace(architectures=["RiverBase"])
    config: Any = SimpleNamespace(
        additional_config={}, model_config=SimpleNamespace(hf_config=hf_config)
    )
    for _ in range(2):
        river_class("RiverBase", Base)(vllm_config=config)  # type: ignore[call-arg]
        assert hf_config.architectures == ["RiverBase", "Base"]


def test_classes_are_attributes_of_the_module_made_from_vllms() -> None:
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.model_executor.models.interfaces_base import is_text_generation_model, is_vllm_model
    from vllm.model_executor.models.llama import LlamaForCausalLM

    cls: Any = classes.RiverLlamaForCausalLM
    assert issubclass(cls, LlamaForCausalLM)
    assert cls is classes.RiverLlamaForCausalLM
    assert (cls.__module__, cls.__qualname__) == (classes.__name__, "RiverLlamaForCausalLM")
    assert is_vllm_model(cls)
    assert is_text_generation_model(cls)
    assert supports_lora(cls) == supports_lora(LlamaForCausalLM)


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="LlamaForCausalLM"):
        _ = classes.LlamaForCausalLM
    with pytest.raises((AttributeError, KeyError)):
        _ = classes.RiverNothing
