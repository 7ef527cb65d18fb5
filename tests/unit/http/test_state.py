"""What the HTTP side knows about the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from river_vllm.config import RiverConfig, parse_config, recorded_settings
from river_vllm.guarantee import ModelRecord
from river_vllm.request import default_settings
from server.http.state import RiverState
from tests.unit.calibrate.support import calibrated
from tests.unit.http.support import L, river_state

ENGINE: dict[str, Any] = {
    "num_layers": L,
    "group_sizes": [128],
    "zero_points": "float",
    "dtype": "bfloat16",
    "kv_cache_dtype": "auto",
    "crossover": {"max_rows": None},
}
SAME = ModelRecord(name="m", config_sha256="a", weights_sha256="b")
PARTLY_KNOWN = ({}, {"revision": "c"}, {"config_sha256": "a"})


def guaranteed(
    engine: dict[str, Any] | None = None, checkpoint: ModelRecord = SAME, **changes: Any
) -> RiverState:
    """A server whose file says everything that its test depended on."""
    data = calibrated(max_rows="all", **changes)
    made = RiverConfig(max_rows="all")
    tested = recorded_settings(made, ENGINE)
    settings = {name: tested.pop(name) for name in tested.keys() & RiverConfig.model_fields}
    data["calibration"] |= {"settings": settings, "tested": tested}
    config = parse_config(data, "file")
    return replace(
        river_state(),
        config=config,
        defaults=default_settings(config),
        engine=ENGINE | (engine or {}),
        checkpoint=checkpoint,
    )


def test_calibration_is_in_force_until_the_dial_is_turned() -> None:
    state = guaranteed()
    shown = state.describe()["calibration"]
    assert shown["in_force"]
    assert shown["not_in_force_because"] == []
    assert shown["achieved"]["agreement"] == 0.99
    json.dumps(shown)
    state.set_threshold(0.5)
    shown = state.describe()["calibration"]
    assert not shown["in_force"]
    assert shown["not_in_force_because"]


@pytest.mark.parametrize(
    ("engine", "checkpoint", "words"),
    [
        ({"zero_points": "integer"}, SAME, "zero_points = 'integer'"),
        ({"group_sizes": [64, 128]}, SAME, "group_sizes = [64, 128]"),
        ({"crossover": {"max_rows": 4}}, SAME, "max_rows = 4"),
        ({"kv_cache_dtype": "fp8"}, SAME, "kv_cache_dtype = 'fp8'"),
        ({"dtype": "float16"}, SAME, "dtype = 'float16'"),
        *(({}, ModelRecord(name="m", **known), "'m'") for known in PARTLY_KNOWN),
    ],
)
def test_a_guarantee_covers_what_was_tested_and_nothing_else(
    engine: dict[str, Any], checkpoint: ModelRecord, words: str
) -> None:
    shown = guaranteed(engine, checkpoint).describe()["calibration"]
    assert not shown["in_force"]
    (reason,) = shown["not_in_force_because"]
    assert words in reason


def test_a_file_that_says_less_than_it_depends_on_is_loaded_and_promises_nothing() -> None:
    """Files from before it was recorded."""
    config = parse_config(calibrated(), "file")
    defaults = default_settings(config)
    state = replace(river_state(), config=config, defaults=defaults, engine=ENGINE, checkpoint=SAME)
    shown = state.describe()["calibration"]
    (reason,) = shown["not_in_force_because"]
    for name in ("zero_points", "max_rows", "scope", "activations", "lm_head"):
        assert name in reason
