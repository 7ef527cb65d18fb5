"""Sphinx: ``make docs``. Warnings are errors there, broken links among them."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from river_vllm import __version__  # noqa: E402  needs the path above

project = "River"
author = "The River authors"
release = __version__
extensions = ["myst_parser"]

html_theme = "furo"
html_title = f"River {release}"
html_show_sourcelink = False

myst_heading_anchors = 3
