"""What the HTTP side knows about the engine."""

from __future__ import annotations

import json
from dataclasses import replace

from river_vllm.config import RiverConfig, parse_config
from river_vllm.request import RiverSettings
from tests.unit.calibration.support import calibrated
from tests.unit.http.support import VERIFIED, L, Metrics, river_state


def test_description_is_what_is_in_force() -> None:
    assert river_state().describe() == {
        "active": True,
        "mode": "exit",
        "model": "tiny",
        "threshold": 0.9,
        "min_layers": 2,
        "prefill": "backbone",
        "scope": "batch",
        "signal": "cosine",
        "calibration": None,
        "num_layers": L,
        "kernels": ["torch"],
    }
    json.dumps(river_state().describe())


def test_description_of_verified_mode() -> None:
    assert river_state(config=RiverConfig(verify=4), defaults=VERIFIED).describe() == {
        "active": True,
        "mode": "verified",
        "model": "tiny",
        "draft_layers": 0,
        "num_layers": L,
        "kernels": ["torch"],
    }


def test_a_changed_threshold_shows_everywhere() -> None:
    state = river_state()
    before = state.defaults
    state.set_threshold(0.25)
    assert state.defaults == RiverSettings(True, 0.25, 2)
    assert state.describe()["threshold"] == 0.25
    assert isinstance(state.metrics, Metrics)
    assert state.metrics.thresholds == [0.25]
    # Requests that are under way keep what they arrived with.
    assert before.threshold == 0.9


def test_calibration_is_in_force_until_the_dial_is_turned() -> None:
    config = parse_config(calibrated(), "file")
    defaults = RiverSettings.from_config(config)
    state = replace(river_state(), config=config, defaults=defaults)
    shown = state.describe()["calibration"]
    assert shown["in_force"]
    assert shown["achieved"]["agreement"] == 0.99
    json.dumps(shown)
    state.set_threshold(0.5)
    assert not state.describe()["calibration"]["in_force"]
