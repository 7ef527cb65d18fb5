"""A model that vLLM compiles as a whole has no second compiled forward."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

from river_vllm.compat import get_forward_context, override_forward_context
from river_vllm.model.compiled import RoutedForward
from river_vllm.model.passes import Current


class Decorated(nn.Module):
    """As vLLM's decorator leaves a module: a switch, and which dimensions vary."""

    _dynamic_arg_dims: ClassVar = {"x": 0}
    do_not_compile = False

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> bool:
        """Whether vLLM's compiled forward is passed over."""
        return bool(get_forward_context().skip_compiled)


def test_where_the_whole_model_is_compiled_routed_steps_are_not() -> None:
    model, current, config = Decorated(), Current(2), SimpleNamespace()
    routed = RoutedForward(current, model, model.layers, config)  # type: ignore[arg-type]
    assert not routed.compiles
    context: Any = SimpleNamespace(skip_compiled=False)
    with override_forward_context(context):
        with routed():
            assert model(torch.ones(1, 2)) and not current.routed
        assert not model(torch.ones(1, 2))
