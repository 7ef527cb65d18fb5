"""The two modes of a river: exits, and drafts that the backbone verifies.

Nothing outside this package asks which mode an engine is in: it asks the mode.
"""

from __future__ import annotations

from typing import Any

from river_vllm.config import RiverConfig
from river_vllm.modes.mode import WorkerMode


def worker_mode(config: RiverConfig, runner: Any) -> WorkerMode:
    """The mode of an engine, for vLLM's runner (V1), whose model has been loaded."""
    from river_vllm.modes.exits import Exits
    from river_vllm.modes.verified import Verified

    return Verified(runner) if config.verify else Exits(runner, config)
