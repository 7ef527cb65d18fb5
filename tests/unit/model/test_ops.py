"""River's operators in a graph: called once each, in the model's order, with what was decided."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from river_vllm.compat import override_forward_context
from river_vllm.model.compiled import CONTEXT

LAYERS = 4


class Calls:
    """Stands for the river: what was called, and a product that depends on the decisions."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.layer = -1
        self.factor = 1.0

    def route_next(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        self.layer += 1
        self.log.append(("route", self.layer))
        self.factor = float(self.layer + 1)

    def linear(self, index: int, x: torch.Tensor, biased: bool) -> torch.Tensor:
        self.log.append(("linear", index))
        return torch.cat([x, x], dim=-1) * self.factor


@pytest.fixture
def calls() -> Iterator[Calls]:
    calls = Calls()
    with override_forward_context(SimpleNamespace(no_compile_layers={CONTEXT: calls})):
        yield calls


def forward(hidden: torch.Tensor) -> torch.Tensor:
    """Layers as a model has them: a decision looks at what the layer before it made."""
    state = torch.cat([hidden, hidden], dim=-1)
    for layer in range(LAYERS):
        inputs = torch.ops.river.route(state, None)[:, :4]
        # Of the two projections nothing else says that they come after the decision.
        for part in range(2):
            state = state + torch.ops.river.linear(inputs, 2 * layer + part, 8, False)
    return state


@pytest.mark.parametrize("compiled", [False, True])
def test_every_projection_runs_after_its_own_decision(calls: Calls, compiled: bool) -> None:
    function = torch.compile(forward, fullgraph=True) if compiled else forward
    hidden = torch.ones(3, 4)
    found = function(hidden)
    for layer in range(LAYERS):
        name, *products = calls.log[3 * layer : 3 * layer + 3]
        assert name == ("route", layer)
        # The two of a layer are free to change places.
        assert sorted(products) == [("linear", 2 * layer), ("linear", 2 * layer + 1)]
    expected = 1.0
    for layer in range(LAYERS):
        expected += 2 * expected * (layer + 1)
    assert torch.equal(found, torch.full((3, 8), expected))
