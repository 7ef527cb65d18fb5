"""What a request may say, and what the worker makes of what it carries."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams

from river_vllm.config import RiverConfig, river_config_of
from river_vllm.errors import RiverError
from river_vllm.request import (
    RiverField,
    RiverSettings,
    UnreachableError,
    default_settings,
    resolve,
    unreachable,
)
from river_vllm.request import settings_of as settings_of_params

LAYERS = 12
CONFIG = RiverConfig()
DEFAULTS = RiverSettings(True, 0.8, 3)
BACKBONE = RiverSettings(False, 0.8, 3)


def settings_of(extra_args: Any, defaults: RiverSettings) -> RiverSettings:
    return settings_of_params(SamplingParams(extra_args=extra_args), defaults)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ({}, DEFAULTS),
        ({"enabled": False}, RiverSettings(False, 0.8, 3)),
        ({"threshold": 0.0}, RiverSettings(True, 0.0, 3)),
        ({"min_layers": LAYERS}, RiverSettings(True, 0.8, LAYERS)),
        ({"threshold": None, "min_layers": None, "trace": True}, DEFAULTS),
    ],
)
def test_resolve_fills_in_the_defaults(field: dict[str, Any], expected: RiverSettings) -> None:
    assert resolve(RiverField.model_validate(field), DEFAULTS, CONFIG, LAYERS) == expected


def test_a_request_cannot_switch_on_what_the_server_has_off() -> None:
    assert not resolve(RiverField(enabled=True), BACKBONE, CONFIG, LAYERS).enabled


def test_resolve_refuses_more_layers_than_the_model_has() -> None:
    with pytest.raises(RiverError, match="'min_layers' = 13: must be between 1 and 12"):
        resolve(RiverField(min_layers=LAYERS + 1), DEFAULTS, CONFIG, LAYERS)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ({"enabled": False}, "enabled"),
        ({"threshold": 1.0}, "threshold"),
        ({"min_layers": 5}, "min_layers"),
    ],
)
def test_what_needs_layers_that_are_not_there_is_refused(field: dict[str, Any], name: str) -> None:
    config = RiverConfig(resident_layers=4)
    with pytest.raises(UnreachableError, match=r"only the first 4 of 12 hold") as caught:
        resolve(RiverField.model_validate(field), DEFAULTS, config, LAYERS)
    assert caught.value.field == name
    assert str(caught.value).startswith(f"'{name}' = ")
    fetching = RiverConfig(resident_layers=4, deep="fetch")
    resolve(RiverField.model_validate(field), DEFAULTS, fetching, LAYERS)


@pytest.mark.parametrize("extra_args", [None, {}, {"river": None}, {"other": {"enabled": False}}])
def test_requests_without_settings_take_the_defaults(extra_args: Any) -> None:
    assert settings_of(extra_args, DEFAULTS) == DEFAULTS


def test_partial_settings_take_the_rest_from_the_defaults() -> None:
    assert settings_of({"river": {"threshold": 0.1}}, DEFAULTS) == RiverSettings(True, 0.1, 3)
    assert settings_of({"river": {"min_layers": 0}}, DEFAULTS) == RiverSettings(True, 0.8, 1)


@pytest.mark.parametrize(
    "raw",
    [
        "on",
        [0.9],
        {"enabled": 1},
        {"threshold": "0.9"},
        {"threshold": 1.01},
        {"threshold": float("nan")},
        {"min_layers": "2"},
        {"min_layers": None},
    ],
    ids=repr,
)
def test_malformed_settings_fall_back_to_the_backbone(raw: Any) -> None:
    assert settings_of({"river": raw}, DEFAULTS) == BACKBONE


VERIFYING = default_settings(RiverConfig(verify=4, threshold=0.7, min_layers=2))


@pytest.mark.parametrize(
    ("field", "mode"),
    [
        ({}, "verified"),
        ({"mode": "verified"}, "verified"),
        ({"threshold": 0.9}, "exit"),
        ({"min_layers": 3}, "exit"),
        ({"mode": "exit"}, "exit"),
        ({"enabled": False}, "backbone"),
    ],
)
def test_a_request_chooses_how_it_is_answered(field: dict[str, Any], mode: str) -> None:
    config = RiverConfig(verify=4, threshold=0.7, min_layers=2)
    settings = resolve(RiverField.model_validate(field), VERIFYING, config, LAYERS)
    assert settings.answered_by == mode
    assert (settings.may_draft, settings.may_exit) == (mode == "verified", mode == "exit")
    # A request that is made in Python may say as much, without the defaults filled in.
    assert settings_of({"river": field}, VERIFYING) == settings
    assert settings_of({"river": settings.as_extra_arg()}, DEFAULTS) == settings


@pytest.mark.parametrize(
    ("field", "config", "message"),
    [
        ({"mode": "verified"}, RiverConfig(threshold=0.9), "'mode' = 'verified': must be 'exit'"),
        (
            {"mode": "verified", "threshold": 0.5},
            RiverConfig(),
            "'threshold' = 0.5: belongs to exits, and 'mode' is 'verified'",
        ),
        ({"mode": "verified", "min_layers": 2}, RiverConfig(), "'min_layers' = 2: belongs to"),
    ],
)
def test_a_mode_that_cannot_be_had_is_refused(
    field: dict[str, Any], config: RiverConfig, message: str
) -> None:
    with pytest.raises(UnreachableError, match=message):
        resolve(RiverField.model_validate(field), default_settings(config), config, LAYERS)


APERTUS = "exits have not been proven for ApertusForCausalLM"
FOUR_BIT = "the checkpoint's own weights are in 4 bit"


@pytest.mark.parametrize(
    ("architecture", "quantization", "expected"),
    [
        ("RiverLlamaForCausalLM", None, None),
        (
            "RiverLlamaForCausalLM",
            {"quant_method": "compressed-tensors", "format": "int-quantized"},
            None,
        ),
        (
            "RiverLlamaForCausalLM",
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            FOUR_BIT,
        ),
        ("RiverLlamaForCausalLM", {"quant_method": "gptq", "bits": 4}, FOUR_BIT),
        ("RiverLlamaForCausalLM", {"quant_method": "gptq", "bits": 8}, None),
        ("RiverLlamaForCausalLM", {"quant_method": "awq", "w_bit": 4}, FOUR_BIT),
        ("RiverApertusForCausalLM", None, APERTUS),
    ],
)
def test_nothing_leaves_an_engine_without_exits(
    architecture: str, quantization: Any, expected: str | None
) -> None:
    hf_config = SimpleNamespace(quantization_config=quantization)
    model_config = SimpleNamespace(hf_config=hf_config, architecture=architecture)
    engine = SimpleNamespace(model_config=model_config, additional_config={})
    config = river_config_of(engine)
    defaults = default_settings(config)
    assert config.in_4_bit is (expected == FOUR_BIT)
    assert defaults.may_draft
    assert defaults.threshold == (1.0 if expected else 0.9)
    assert not resolve(RiverField(threshold=1.0), defaults, config, LAYERS).may_exit
    if expected:
        message = f"'threshold' = 0.5: must be 1.0, {expected}"
        with pytest.raises(UnreachableError, match=re.escape(message)):
            resolve(RiverField(threshold=0.5), defaults, config, LAYERS)
        assert unreachable(replace(defaults, threshold=0.5), config, LAYERS) is not None


def test_what_the_rejection_sampler_leaves_out_ends_drafts_and_no_exits() -> None:
    sampling = SamplingParams(min_p=0.1)
    assert settings_of_params(sampling, VERIFYING).answered_by == "backbone"
    sampling.extra_args = {"river": {"threshold": 0.9}}
    assert settings_of_params(sampling, VERIFYING).may_exit
    assert settings_of_params(None, VERIFYING) == VERIFYING
