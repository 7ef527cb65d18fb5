"""What a setting affects is declared once, and everything that depends on it follows."""

from __future__ import annotations

import argparse
from typing import Annotated, Any

import pytest

from river_vllm.config import Affects, RiverConfig, Settings, calibrated_settings
from river_vllm.engine.scheduler import salt
from river_vllm.engine_config import graph_key
from river_vllm.request import default_settings
from server.cli.options import options_of


class WithRounding(RiverConfig):
    """The settings, and one that affects everything."""

    rounding: Annotated[int, Affects.KV | Affects.GRAPH | Affects.COST | Affects.GUARANTEE] = 0
    """A setting that nothing else of River's names."""
    unheard: Annotated[int, Affects.NOTHING] = 0
    """One that affects nothing."""


def depends(config: RiverConfig) -> dict[str, Any]:
    """What is made of the settings, by what it is for."""
    return {
        "blocks": salt(default_settings(config), config),
        "graphs": graph_key(config),
        "costs": config.what_affects(Affects.COST),
        "guarantee": calibrated_settings(config),
    }


def test_what_a_setting_affects_follows_from_its_declaration() -> None:
    before = depends(WithRounding())
    after = depends(WithRounding(rounding=1))
    assert [name for name in before if after[name] == before[name]] == []
    assert depends(WithRounding(unheard=1)) == before


def test_a_setting_is_an_option_of_the_command_line() -> None:
    options, parser = options_of(WithRounding), argparse.ArgumentParser()
    options.add(parser)
    given = options.given(parser.parse_args(["--river-rounding", "3"]))
    assert given == {"rounding": 3}
    assert set(WithRounding.model_fields) - set(options.names) == {"calibration"}


def test_a_setting_that_does_not_say_what_it_affects_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Undeclared\.size"):

        class Undeclared(Settings):
            size: int = 0
