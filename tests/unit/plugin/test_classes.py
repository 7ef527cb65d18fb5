"""Model classes that are made on first use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from vllm.model_executor.models.interfaces import supports_lora
from vllm.model_executor.models.interfaces_base import is_text_generation_model
from vllm.model_executor.models.llama import LlamaForCausalLM

from river_vllm.plugin import classes
from river_vllm.plugin.classes import river_class


class Base(nn.Module):
    """Plays a model class of vLLM's."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()


def test_the_models_configuration_names_both_architectures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM's Transformers backend renames weights by the name that transformers knows."""
    monkeypatch.setattr(classes, "attach", lambda *_: (None, lambda: None))
    hf_config = SimpleNamespace(architectures=["RiverBase"])
    config: Any = SimpleNamespace(
        additional_config={}, model_config=SimpleNamespace(hf_config=hf_config)
    )
    for _ in range(2):
        river_class("RiverBase", Base)(vllm_config=config)  # type: ignore[call-arg]
        assert hf_config.architectures == ["RiverBase", "Base"]


def test_a_class_is_vllms_own_with_a_river() -> None:
    cls: Any = classes.RiverLlamaForCausalLM
    assert issubclass(cls, LlamaForCausalLM) and cls is classes.RiverLlamaForCausalLM
    assert cls.forward is LlamaForCausalLM.forward, "a forward pass of the model is vLLM's own"
    assert is_text_generation_model(cls)
    assert supports_lora(cls) == supports_lora(LlamaForCausalLM)
    with pytest.raises((AttributeError, KeyError)):
        _ = classes.RiverNothing
