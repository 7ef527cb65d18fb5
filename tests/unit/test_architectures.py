"""Names of architectures."""

from __future__ import annotations

import pytest

from river_vllm.errors import UnsupportedModelError
from river_vllm.models.architectures import ARCHITECTURES, river_architecture


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_prefix_is_there_once(name: str) -> None:
    assert river_architecture(name) == f"River{name}"
    assert river_architecture(f"River{name}") == f"River{name}"


@pytest.mark.parametrize("name", ["OPTForCausalLM", "River", "", "llamaforcausallm"])
def test_what_river_does_not_carry_is_refused_with_what_it_does(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=", ".join(ARCHITECTURES)) as error:
        river_architecture(name)
    assert f"'{name}'" in str(error.value)


def test_vllm_has_every_architecture() -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    assert set(ARCHITECTURES) <= set(ModelRegistry.models)
