"""Turns SIGTERM into an exception, so that a command cleans up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process through its ``finally`` blocks, with status 143."""
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end(number: int, _frame: object) -> None:
    """Signal handler: raise ``SystemExit`` with the status of a process ended by it."""
    # Ignore further signals: the clean-up must not be interrupted.
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)
