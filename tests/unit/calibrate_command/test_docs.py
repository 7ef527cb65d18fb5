"""The guide names every option, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from server.calibrate.options import CalibrateOptions
from server.cli.arguments import OneLineParser, add_options
from tests.docs.documents import options_of

GUIDE = (Path(__file__).parents[3] / "docs" / "calibration.md").read_text(encoding="utf-8")


def test_every_option_is_in_the_guide_and_every_one_there_exists() -> None:
    parser = OneLineParser(add_help=False)
    add_options(parser, CalibrateOptions)
    options = options_of(parser)
    assert [name for name in sorted(options) if f"`{name}" not in GUIDE] == []
    assert set(re.findall(r"`(--[a-z-]+)", GUIDE)) <= options
