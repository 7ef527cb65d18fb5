"""Hooks under the architectures' own names: River where it is asked for, and nothing elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from river_vllm.compat import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from river_vllm.errors import UnsupportedModelError
from river_vllm.plugin.hook import SCHEDULER
from river_vllm.plugin.opt_in import opt_in
from tests.unit.plugin.test_hook import engine


class Model(SimpleNamespace):
    """Plays ``ModelConfig`` of a model that vLLM has just read."""

    @property
    def architecture(self) -> str:
        return str(self._architecture)

    def get_model_arch_config(self) -> Any:
        return SimpleNamespace(architectures=list(self.hf_config.architectures))

    @property
    def registry(self) -> Any:
        return SimpleNamespace(inspect_model_cls=lambda names, model: (f"of {names[0]}", names[0]))


def config(architecture: str, additional: Any, **shape: Any) -> Any:
    """A configuration of vLLM's for an architecture, at the moment that it calls the hook."""
    made = engine()
    fields = {k: v for k, v in vars(made.model_config).items() if k != "architecture"}
    hf_config = SimpleNamespace(architectures=[architecture, "Other"], **shape)
    fields |= {"hf_config": hf_config, "enforce_eager": True}
    made.model_config = Model(
        **fields, _architecture=architecture, _model_info=f"of {architecture}"
    )
    made.model_config.model_arch_config = made.model_config.get_model_arch_config()
    made.additional_config = additional
    return made


class Own(VerifyAndUpdateConfig):
    """A hook that vLLM or another plugin has under an architecture's name."""

    seen: list[str]

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        Own.seen.append(vllm_config.model_config.architecture)


@pytest.fixture
def seen() -> list[str]:
    """The architectures that ``Own`` was called for."""
    Own.seen = []
    return Own.seen


@pytest.mark.parametrize("additional", [{}, {"other": 1}, None, "a plugin's own object"], ids=str)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MixtralForCausalLM"])
def test_what_does_not_ask_is_left_as_it_was(
    architecture: str, additional: Any, seen: list[str]
) -> None:
    given = config(architecture, additional)
    for own in (VerifyAndUpdateConfig, Own):
        opt_in(own).verify_and_update_config(given)
    untouched = config(architecture, additional)
    untouched.model_config.get_total_num_hidden_layers = (
        given.model_config.get_total_num_hidden_layers
    )
    assert given == untouched
    assert seen == [architecture]


def test_what_asks_is_rivers_in_every_field_that_the_name_decides(
    seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = opt_in(Own)
    monkeypatch.setitem(MODELS_CONFIG_MAP, "LlamaForCausalLM", hook)
    given = config("LlamaForCausalLM", {"river": {"threshold": 0.9}})
    hook.verify_and_update_config(given)
    model = given.model_config
    assert model.architecture == "RiverLlamaForCausalLM"
    assert model.hf_config.architectures == ["RiverLlamaForCausalLM"]
    assert model.model_arch_config.architectures == ["RiverLlamaForCausalLM"]
    assert model._model_info == "of RiverLlamaForCausalLM"
    assert given.scheduler_config.scheduler_cls == SCHEDULER
    assert seen == ["RiverLlamaForCausalLM"], "the architecture's own hook runs, once"


def test_an_architecture_that_river_does_not_carry_is_refused_in_one_line() -> None:
    given = config("MixtralForCausalLM", {"river": {"threshold": 0.9}}, num_local_experts=8)
    with pytest.raises(UnsupportedModelError, match="'MixtralForCausalLM'") as error:
        opt_in(VerifyAndUpdateConfig).verify_and_update_config(given)
    assert "mixture of experts" in str(error.value) and "\n" not in str(error.value)
