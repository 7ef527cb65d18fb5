"""Model classes that are made on first use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from river_vllm.config import RiverConfig
from river_vllm.models import classes
from river_vllm.models.classes import river_class
from river_vllm.router.batch import StepBatch

CONFIG: Any = SimpleNamespace(
    additional_config={"river": {"threshold": 0.25}},
    model_config=SimpleNamespace(hf_config=SimpleNamespace()),
)


ARGUMENTS = {
    "input_ids": "ids",
    "positions": "pos",
    "intermediate_tensors": None,
    "inputs_embeds": None,
}


class Base(nn.Module):
    """Plays a model class of vLLM's."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.made_with = (vllm_config, prefix)
        self.inside: list[bool] = []

    def forward(self, **kwargs: Any) -> Any:
        self.inside.append(self.river.router.open)  # type: ignore[union-attr]
        return kwargs


class FakeRiver:
    def __init__(self, model: Any, config: RiverConfig, vllm_config: Any) -> None:
        assert model.made_with[0] is vllm_config, "the model is there before its river"
        self.config, self.router, self.open = config, self, False
        self.observer = None
        self.batches: list[Any] = []
        self.residency = SimpleNamespace(offloads=False)

    @contextmanager
    def step(self, batch: Any) -> Iterator[None]:
        self.batches.append(batch)
        self.open = True
        yield
        self.open = False


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(classes, "River", FakeRiver)
    return river_class("RiverBase", Base)(vllm_config=CONFIG, prefix="p")  # type: ignore[call-arg]


def test_the_model_is_vllms_with_a_river_of_the_engines_settings(model: Any) -> None:
    assert isinstance(model, Base)
    assert model.made_with == (CONFIG, "p")
    assert model.river.config == RiverConfig(threshold=0.25)
    assert type(model).__name__ == "RiverBase"


def test_a_forward_pass_without_a_batch_is_stock(model: Any) -> None:
    assert model("ids", "pos", None, "embeds", extra=1) == ARGUMENTS | {
        "inputs_embeds": "embeds",
        "extra": 1,
    }
    assert (model.inside, model.river.batches) == ([False], [])


def test_a_forward_pass_with_a_batch_is_routed(model: Any) -> None:
    batch = StepBatch(1, [])
    out = model(input_ids="ids", positions="pos", river_batch=batch, extra=1)
    assert out == ARGUMENTS | {"extra": 1}
    assert (model.inside, model.river.batches) == ([True], [batch])


def test_with_layers_out_of_memory_a_dummy_pass_is_routed_too(model: Any) -> None:
    model.river.residency.offloads = True
    model("ids", "pos")
    assert (model.inside, model.river.batches) == ([True], [None])


def test_the_models_configuration_names_both_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's Transformers backend renames weights by the name that transformers knows."""
    monkeypatch.setattr(classes, "River", FakeRiver)
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
