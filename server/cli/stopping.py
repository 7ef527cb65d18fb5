"""A signal as an exception, so that what a command has begun is cleaned up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the process by way of its ``finally`` blocks, with status 143."""
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end(number: int, _frame: object) -> None:
    """A signal handler: ``SystemExit`` with the status of a process that the signal has ended."""
    # Once is enough: what cleans up must not be interrupted.
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)
