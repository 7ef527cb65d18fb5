"""What a program may use."""

from __future__ import annotations

from dataclasses import dataclass

FILE_BYTES = 1 << 20
"""Size of each file that a program writes."""

OPEN_FILES = 64

PROCESSES = 32
"""Processes and threads; only where they can be counted apart from the user's others."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one program; each process that it starts has them anew, but for the wall time."""

    cpu_seconds: int = 5
    wall_seconds: float = 60.0
    """A backstop for programs that wait; generous, so that a busy machine changes no verdict."""
    memory_mib: int = 1024
    """Address space."""
