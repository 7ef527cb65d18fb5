"""Runs in the server's processes: a forward pass that is slow, or fails."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

_loaded = False


def load() -> None:
    """Entry point of ``vllm.general_plugins``; every step of a River worker begins here."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    from river_vllm.model.forward import Forward

    order = Path(os.environ["RIVER_TEST_ORDER"])
    run = Forward.run

    def suffer_and_run(self: Any, *args: Any) -> Any:
        what, _, how = order.read_text().partition(" ")
        if what == "sleep":
            time.sleep(float(how))
        if what == "raise":
            raise RuntimeError("a fault that a test has ordered")
        return run(self, *args)

    Forward.run = suffer_and_run  # type: ignore[method-assign]
