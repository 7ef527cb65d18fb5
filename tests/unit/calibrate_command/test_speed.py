"""Bytes of weights."""

from __future__ import annotations

import pytest

from server.calibrate.speed import WeightBytes

LAYER = 2.0 * 36864
ENGINE = {
    "num_layers": 10,
    "lm_head": "backbone",
    "resident_layers": 4,
    "fetched_layers": [7],
    "backbone_bytes": 5 * LAYER,
}


def test_bytes_of_a_layer_and_of_the_head() -> None:
    found = WeightBytes.of(ENGINE, 128000.0, 64)
    assert found.backbone == LAYER
    assert found.river == 36864 / 2 + 36864 / 64 * 4
    assert found.head == found.river_head == 128000.0
    found = WeightBytes.of(ENGINE | {"lm_head": "river"}, 128000.0, 64)
    assert found.river_head == 64000.0 * (0.5 + 4 / 64)


def test_speedup_is_one_at_full_depth_and_falls_with_it() -> None:
    found = WeightBytes.of(ENGINE, 128000.0, 64)
    assert found.speedup(10) == pytest.approx(1.0)
    assert found.speedup(1) > found.speedup(5) > 1.0
