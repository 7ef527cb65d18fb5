"""Options of earlier versions, and what to use in their place."""

from __future__ import annotations

from river_vllm.config import REMOVED

REMOVED_OPTIONS = {f"--river-{name.replace('_', '-')}": use for name, use in REMOVED.items()}
