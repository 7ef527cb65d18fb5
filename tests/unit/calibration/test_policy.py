"""A policy's exit layers are the router's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from river_vllm.calibration.policy import NEVER, Policy
from river_vllm.request import TeacherForced
from river_vllm.router.batch import ExitUnit, StepBatch
from river_vllm.router.plan import RowPlan
from river_vllm.router.router import Router

LAYERS, ROWS = 8, 20
OFFSETS = (0.0, 0.3, -0.2, 2.0, 0.1, -0.1, 0.0)


def _states() -> torch.Tensor:
    """Residual streams before each layer, ``[layers, rows, 16]``."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(LAYERS, ROWS, 16, generator=generator)
    return steps.cumsum(dim=0)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(0.8, 1),
        Policy(0.8, 3),
        Policy(0.7, 2, OFFSETS),
        Policy(-1.0, 4),
        Policy(-1.0, 1, OFFSETS),
        Policy.backbone(),
    ],
)
def test_prediction_is_the_routers_decision(policy: Policy) -> None:
    states, found = _states(), []
    router = Router(LAYERS, RowPlan())
    unit = {"threshold": policy.threshold, "min_layers": policy.min_layers}
    units = [ExitUnit(row, row + 1, **unit, offsets=policy.layer_offsets) for row in range(ROWS)]
    batch = StepBatch(ROWS, units)
    with router.step(batch):
        for layer in range(LAYERS):
            router.before_layer(layer, states[layer], None)
    watching = Router(LAYERS, RowPlan())
    watching.probe = lambda _, before, after: found.append((before, after))
    settings = Policy.backbone()
    with watching.step(
        StepBatch(ROWS, [ExitUnit(r, r + 1, settings.threshold, 1) for r in range(ROWS)])
    ):
        for layer in range(LAYERS):
            watching.before_layer(layer, states[layer], None)
    assert len(found) == LAYERS - 1
    similarity = torch.stack(
        [torch.cosine_similarity(a, b, dim=-1) for a, b in found], dim=1
    ).numpy()
    assert policy.exit_layers(similarity).tolist() == batch.exit_layer.tolist()


def test_backbones_threshold_is_routed_and_lets_nothing_leave() -> None:
    assert NEVER < 1.0
    assert np.float32(NEVER) == 1.0
    settings = Policy.backbone().settings(TeacherForced(3, 7))
    assert settings.may_exit
    assert settings.prompt_tokens(50) == 7


def test_config_form_leaves_out_what_is_not_set() -> None:
    assert Policy(0.9, 2).as_config() == {"threshold": 0.9, "min_layers": 2}
    assert Policy(0.9, 2, OFFSETS).as_config()["layer_offsets"] == list(OFFSETS)
