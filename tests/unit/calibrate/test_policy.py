"""A policy's exit layers are the router's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from river_vllm.calibrate.choose import NEVER, Policy
from river_vllm.step.criterion import by_torch, transition_similarity
from river_vllm.step.router import Router
from river_vllm.step.table import StepTable

LAYERS, ROWS = 8, 20


def _states() -> torch.Tensor:
    """Residual streams before each layer, ``[layers, rows, 16]``."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(LAYERS, ROWS, 16, generator=generator)
    return steps.cumsum(dim=0)


@pytest.mark.parametrize(
    "policy", [Policy(0.8, 1), Policy(0.8, 3), Policy(-1.0, 4), Policy.backbone()]
)
def test_prediction_is_the_routers_decision(policy: Policy) -> None:
    states = _states()
    router = Router(by_torch(transition_similarity))
    table = StepTable(LAYERS, [1] * ROWS, [policy.threshold] * ROWS, [policy.min_layers] * ROWS)
    for layer, state in enumerate(states):
        router.decide(table, layer, state, None)
    table.close()
    similarity = torch.cosine_similarity(states[:-1], states[1:], dim=-1).T.numpy()
    assert policy.exit_layers(similarity).tolist() == table.exit_layer.tolist()


def test_backbones_threshold_is_routed_and_lets_nothing_leave() -> None:
    assert NEVER < 1.0
    assert np.float32(NEVER) == 1.0
    assert Policy.backbone().settings().may_exit
