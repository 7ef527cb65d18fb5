"""The whole calibration on a made-up model, whatever its number of layers."""

from __future__ import annotations

from typing import Any

import pytest

from river_vllm.calibrate.run import Calibrator, pilot_layers
from tests.unit.calibrate.support import TEXTS, Engine, World


@pytest.mark.parametrize("layers", [2, 3, 6, 10, 11, 30])
def test_models_of_any_depth(layers: int) -> None:
    engine: Any = Engine(World(200, layers=layers))
    calibrator = Calibrator(engine, lambda *_: None, lambda _: None)
    outcome = calibrator.calibrate(TEXTS, 40, 0.9, 0.1)
    assert list(outcome.forced) == pilot_layers(layers)
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
