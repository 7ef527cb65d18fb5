"""The guide names every option of the command, and no other."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from server.quantize.command import _add_options

GUIDE = (Path(__file__).parents[3] / "docs" / "quantization.md").read_text(encoding="utf-8")


def test_every_option_is_in_the_guide_and_every_one_there_exists() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    _add_options(parser)
    options = {name for action in parser._actions for name in action.option_strings}
    assert [name for name in sorted(options) if f"`{name}" not in GUIDE] == []
    named = {n for n in re.findall(r"`(--[a-z-]+)", GUIDE) if not n.startswith("--river-")}
    assert named <= options
