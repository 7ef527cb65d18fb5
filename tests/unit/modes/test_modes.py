"""Which mode an engine is in, and what it makes of a request's settings."""

from __future__ import annotations

import pytest

from river_vllm.config import RiverConfig
from river_vllm.modes import default_settings, mode_of, settings_of
from river_vllm.modes.choice import wants_head
from river_vllm.request import RiverSettings


@pytest.mark.parametrize(("verify", "name"), [(0, "exit"), (4, "verified")])
def test_drafts_are_a_mode_of_their_own(verify: int, name: str) -> None:
    config = RiverConfig(verify=verify)
    assert mode_of(config).name == default_settings(config).mode == name


def test_a_verifying_engine_lets_nothing_exit() -> None:
    """Settings that only exits have are none of its own: such a request runs on the backbone."""
    defaults = default_settings(RiverConfig(verify=4))
    assert not defaults.may_exit
    assert settings_of({"river": defaults.as_extra_arg()}, defaults) == defaults
    off = settings_of({"river": {"enabled": False}}, defaults)
    assert (off.enabled, off.may_exit) == (False, False)
    for raw in ({"threshold": 0.5}, {"min_layers": 3}):
        backbone = RiverSettings(False, 1.0, 1, mode="verified")
        assert settings_of({"river": raw}, defaults) == backbone


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (RiverConfig(), False),
        (RiverConfig(lm_head="river"), True),
        (RiverConfig(verify=4), True),
        (RiverConfig(verify=4, lm_head="backbone"), False),
    ],
    ids=str,
)
def test_drafts_have_a_head_of_their_own_unless_told_otherwise(
    config: RiverConfig, wanted: bool
) -> None:
    assert wants_head(config) is wanted
