"""Two forms of the reliability tests: a short one in ``make test``, a long one in
``make reliability``."""

from __future__ import annotations

import os
from typing import Any

LONG = os.environ.get("RIVER_RELIABILITY") == "long"


def form(short: Any, long: Any) -> Any:
    """``short`` in ``make test``, ``long`` in ``make reliability``."""
    return long if LONG else short
