"""Which module gets a second compiled forward, and when it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from river_vllm.compat import get_forward_context, override_forward_context
from river_vllm.model import compiled
from river_vllm.model.compiled import RoutedForward
from river_vllm.model.passes import Current

CONFIG: Any = SimpleNamespace()


class Inner(nn.Module):
    """As vLLM's decorator leaves a module: a switch, and which dimensions vary."""

    _dynamic_arg_dims: ClassVar = {"x": 0}

    def __init__(self, do_not_compile: bool) -> None:
        super().__init__()
        self.do_not_compile = do_not_compile
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

    def __call__(self, x: torch.Tensor) -> str:
        return f"stock, skipped: {get_forward_context().skip_compiled}"

    def forward(self, x: torch.Tensor) -> str:
        return f"routed by {type(self).__name__}, skipped: {get_forward_context().skip_compiled}"


class Whole(nn.Module):
    """A causal model around it."""

    def __init__(self, do_not_compile: bool) -> None:
        super().__init__()
        self.model = Inner(do_not_compile)
        self.lm_head = nn.Linear(2, 2)


@pytest.fixture
def decorated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What vLLM's decorator was given, in place of the compiler."""
    seen: list[Any] = []

    def decorator(dynamic_arg_dims: dict[str, int]) -> Any:
        return lambda cls: seen.append((cls, dynamic_arg_dims)) or cls

    monkeypatch.setattr(compiled, "support_torch_compile", decorator)
    return seen


def test_a_routed_step_takes_the_second_forward(decorated: list[Any]) -> None:
    model = Whole(False)
    names = [name for name, _ in model.named_modules()]
    current = Current(2)
    routed = RoutedForward(current, model, model.model.layers, CONFIG)
    assert routed.compiles
    ((cls, dims),) = decorated
    # vLLM keys what it has compiled by this name: the two must not share one.
    assert cls.forward.__qualname__ == "RiverInner.forward"
    assert dims == {"x": 0}
    assert [name for name, _ in model.named_modules()] == names
    x = torch.ones(1, 2)
    with override_forward_context(SimpleNamespace(skip_compiled=False)):
        assert model.model(x) == "stock, skipped: False"
        with routed():
            assert current.routed
            assert model.model(x) == "routed by Inner, skipped: False"
        assert not current.routed
        assert model.model(x) == "stock, skipped: False"


def test_where_the_whole_model_is_compiled_routed_steps_are_not(decorated: list[Any]) -> None:
    model = Inner(False)
    current = Current(2)
    routed = RoutedForward(current, model, model.layers, CONFIG)
    assert not routed.compiles
    with override_forward_context(SimpleNamespace(skip_compiled=False)):
        with routed():
            assert model(torch.ones(1, 2)) == "stock, skipped: True"
            assert not current.routed
        assert model(torch.ones(1, 2)) == "stock, skipped: False"
    assert not decorated


def test_an_engine_without_compiler_has_one_forward(decorated: list[Any]) -> None:
    model = Whole(True)
    current = Current(2)
    routed = RoutedForward(current, model, model.model.layers, CONFIG)
    assert not routed.compiles
    with routed():
        assert not current.routed
    assert not decorated
