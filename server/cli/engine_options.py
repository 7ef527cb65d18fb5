"""Options of an engine for measurements."""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from server.cli.arguments import Options


class EngineLimits(Options):
    """Engine: the text it reads, the memory it takes."""

    revision: str | None = None
    """revision of a hub checkpoint"""
    max_model_len: int = Field(default=1024, ge=64)
    """longest text in tokens; longer prompts are left out"""
    kv_cache_gib: PositiveFloat = 2.0
    """memory for K and V in GiB"""
