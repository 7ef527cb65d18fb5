"""Settings: their layers, their limits, and what an error tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from river_vllm.config import Affects, RiverConfig, layered_config, load_config_file, parse_config
from river_vllm.errors import RiverError

ADDITIONAL = 'additional_config["river"]'


def test_defaults_hold_where_nothing_is_said() -> None:
    assert layered_config(None, None) == RiverConfig()
    assert layered_config({}, {}) == RiverConfig()


def test_each_layer_covers_only_the_fields_it_names() -> None:
    checkpoint = {"threshold": 0.5, "min_layers": 4, "quantizer": "rtn"}
    config = layered_config(checkpoint, {"threshold": 0.7, "group_size": 64})
    assert (config.threshold, config.min_layers) == (0.7, 4)
    assert (config.quantizer, config.group_size) == ("rtn", 64)
    assert config.scope == RiverConfig().scope == "step"
    assert layered_config({"min_layers": 4}, {"min_layers": 1}).min_layers == 1


def test_merged_leaves_the_original_alone_and_is_frozen() -> None:
    config = RiverConfig(threshold=0.5)
    assert config.merged({"min_layers": 3}, "here") == RiverConfig(threshold=0.5, min_layers=3)
    assert config.min_layers == 1
    # What nobody has set must not cover a checkpoint's own settings later on.
    assert config.merged({"min_layers": 3}, "here").model_fields_set == {"threshold", "min_layers"}
    with pytest.raises(ValidationError):
        config.threshold = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "values"), [("threshold", [-1, -1.0, 0, 1, 1.0]), ("resident_layers", ["all", 1, 30])]
)
def test_a_field_takes_its_whole_range(field: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(parse_config({field: value}, "here"), field) == value


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("threshold", 1.0001, "less than or equal to 1"),
        ("threshold", -1.5, "greater than or equal to -1"),
        ("threshold", float("nan"), "finite"),
        ("threshold", "0.9", "valid number"),
        ("threshold", True, "valid number"),
        ("threshold", None, "valid number"),
        ("min_layers", 0, "greater than or equal to 1"),
        ("min_layers", 2.0, "valid integer"),
        ("scope", "row", "'token', 'step' or 'batch'"),
        ("group_size", "64", "32, 64 or 128"),
        *(("resident_layers", value, "") for value in (0, 2.0, "4", "auto", True, None)),
    ],
)
def test_error_names_source_field_value_and_what_is_allowed(
    field: str, value: object, allowed: str
) -> None:
    with pytest.raises(RiverError) as error:
        parse_config({field: value}, "river.yaml")
    text = str(error.value)
    assert text.startswith(f"river.yaml: '{field}")
    assert f" = {value!r}: " in text and allowed in text and "\n" not in text


def test_unknown_field_is_named_beside_the_known_ones() -> None:
    with pytest.raises(RiverError, match="here: unknown field 'treshold'") as error:
        parse_config({"treshold": 0.9}, "here")
    for name in RiverConfig.model_fields:
        assert name in str(error.value)


def test_every_wrong_field_is_reported_at_once() -> None:
    with pytest.raises(RiverError, match=r"'threshold' = 2: .*; 'min_layers' = 0: "):
        parse_config({"threshold": 2, "min_layers": 0}, "here")


@pytest.mark.parametrize("data", [None, [("threshold", 0.9)]])
def test_settings_must_be_an_object(data: object) -> None:
    with pytest.raises(RiverError, match="here: expected an object") as error:
        parse_config(data, "here")
    assert repr(data) in str(error.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"verify": 4, "resident_layers": 2}, "verify = 4"),
        ({"threshold": 0.9, "draft": "fixed"}, "verify is 0"),
        ({"deep": "fetch"}, "deep = 'fetch'"),
    ],
)
def test_settings_of_all_sources_have_to_go_together(settings: Any, reason: str) -> None:
    (name, value), *rest = settings.items()
    with pytest.raises(RiverError, match=f"^river_config.*: .*{reason}"):
        layered_config({name: value}, dict(rest))
    assert layered_config({"deep": "fetch"}, {"resident_layers": 2}).offloads(4)


def test_layers_name_themselves_in_errors() -> None:
    with pytest.raises(RiverError, match=r"^river_config: 'threshold' = 3"):
        layered_config({"threshold": 3}, {"min_layers": 2})
    with pytest.raises(RiverError) as error:
        layered_config({"threshold": 0.5}, {"threshold": 3})
    assert str(error.value).startswith(f"{ADDITIONAL}: 'threshold' = 3")
    with pytest.raises(RiverError) as error:
        layered_config(None, [1])
    assert str(error.value).startswith(f"{ADDITIONAL}: expected an object")


@pytest.mark.parametrize(("field", "value"), [("weights", "river"), ("cache_dir", "/etc")])
def test_a_checkpoint_names_no_paths(field: str, value: str) -> None:
    """Whoever made the checkpoint does not decide what is read and written on this machine."""
    with pytest.raises(RiverError) as error:
        layered_config({"threshold": 0.5, field: value}, {})
    assert str(error.value).startswith(f"river_config: '{field}' = '{value}': ")
    assert f"--river-{field.replace('_', '-')}" in str(error.value)
    assert getattr(layered_config({"threshold": 0.5}, {field: value}), field) == value


def test_every_setting_of_free_text_is_known_to_be_a_path() -> None:
    free = {n for n, f in RiverConfig.model_fields.items() if f.annotation in (str, str | None)}
    assert free == RiverConfig.affecting(Affects.PLACE)


def test_a_checkpoint_may_hold_what_calibrate_wrote() -> None:
    """It spells out settings that nobody has made."""
    assert layered_config({"weights": None, "cache_dir": "auto"}, None) == RiverConfig()


@pytest.mark.parametrize(
    ("settings", "drafts"),
    [
        ({}, 15),
        ({"group_size": 64, "quantizer": "rtn", "kernel": "torch"}, 15),
        ({"draft": "fixed"}, 4),
        ({"verify": 2}, 2),
        ({"verify": 0}, 0),
        ({"threshold": 0.9}, 0),
        ({"activations": "int8"}, 0),
        ({"threshold": 0.9, "verify": 6}, 6),
    ],
)
def test_who_asks_for_exits_gets_no_drafts_unless_they_are_asked_for_too(
    settings: dict[str, Any], drafts: int
) -> None:
    assert parse_config(settings, "here").drafts == drafts
    assert layered_config({**settings, "threshold": 0.8}, {"verify": 3}).drafts == 3


SETTINGS = {"threshold": 0.25, "scope": "batch"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(SETTINGS),
        "threshold: 0.25\nscope: batch\n",
        json.dumps({"model_type": "llama", "river_config": SETTINGS}),
    ],
    ids=["json", "yaml", "checkpoint"],
)
def test_settings_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "river"
    path.write_text(text)
    assert load_config_file(path) == SETTINGS


@pytest.mark.parametrize(
    "content",
    [b"threshold: [0.9", b"", b"- threshold", b"river_config: 3", b"threshold: \xff\xfe", None],
    ids=["syntax", "empty", "list", "inner", "not-utf8", "not-there"],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "settings"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RiverError) as error:
        load_config_file(path)
    assert str(path) in str(error.value)


def test_an_error_is_short_whatever_was_sent() -> None:
    data = {f"{index}" * 500: 1 for index in range(1000)}
    with pytest.raises(RiverError) as caught:
        parse_config({**data, "threshold": [1] * 10_000}, "here")
    assert len(str(caught.value)) < 5000
    assert "more" in str(caught.value)
