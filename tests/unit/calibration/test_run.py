"""The whole calibration on a made-up model, whatever its number of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from river_vllm.calibration.observer import Measured
from river_vllm.calibration.passes import Text
from river_vllm.calibration.policy import Policy
from river_vllm.calibration.run import Calibrator, joined, pilot_layers
from river_vllm.calibration.target import Metric, Target
from tests.unit.calibration.support import World


class Engine:
    """Stands for ``TeacherForcedEngine``: each text has the tokens of a made-up model."""

    def __init__(self, world: World) -> None:
        self._world = world

    def run(
        self, policy: Policy | None, texts: Sequence[Text], first: int = 0, kv: bool = False
    ) -> Measured:
        return self._world.measure(policy, slice(first, first + len(texts)))


@pytest.mark.parametrize("layers", [2, 3, 6, 10, 11, 30])
@pytest.mark.parametrize("metric", ["agreement", "kl", "depth"])
def test_models_of_any_depth(layers: int, metric: Metric) -> None:
    engine: Any = Engine(World(200, layers=layers))
    calibrator = Calibrator(engine, lambda *_: None, lambda _: None)
    texts = [Text((1,), tuple(range(17)))] * 200
    value = {"agreement": 0.9, "kl": 0.05, "depth": 0.6 * layers}[metric]
    outcome = calibrator.calibrate(texts, 40, Target(metric, value, layers), 0.1, kv=False)
    assert [item.layer for item in outcome.forced] == pilot_layers(layers)
    assert outcome.chosen is not None
    assert 1.0 <= outcome.chosen.mean_exit_layer < layers
    assert len(outcome.similarity_quantiles) == layers - 1


def test_a_token_of_the_pilot_always_leaves() -> None:
    for layers in range(2, 100):
        found = pilot_layers(layers)
        assert found == sorted(set(found))
        assert found[0] == 1
        assert found[-1] < layers
    assert pilot_layers(6) == [1, 2, 3, 4, 5]
    assert pilot_layers(30) == [1, 3, 9, 15, 21, 26, 28]


def test_parts_are_joined_and_what_one_lacks_is_left_out() -> None:
    world = World(20)
    parts = [world.measure(None, slice(start, start + 10)) for start in (0, 10)]
    whole = joined(parts)
    assert np.array_equal(whole.similarity, world.measure(None).similarity)
    assert np.array_equal(whole.tokens, world.measure(None).tokens)
    assert whole.keys is None
