"""Waiting for something to become true, instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def poll_until(look: Callable[[], Any], seconds: float, what: str, every: float = 0.1) -> Any:
    """The first value of ``look`` that is true.

    Raises:
        AssertionError: it was not true in time; says ``what`` was waited for.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = look()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(every)
