"""Progress of making the 4-bit weights: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

EVERY = 5.0
"""Seconds between two lines of a log."""


class PackingProgress:
    """Counts projections as they are packed.

    The work is done inside vLLM's loading of weights, in the worker process; its standard error is
    the terminal's own, with vLLM's prefix, as for vLLM's bars.

    Args:
        log: takes a line for a log.
        shown: whether this process tells (one rank does).
        stream: where a bar would be drawn, if it is a terminal.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        shown: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._shown = shown
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._total = 0
        self._done = 0
        self._bar: tqdm[None] | None = None
        self._started = 0.0
        self._last = 0.0

    def expect(self) -> None:
        """One more projection will be packed."""
        self._total += 1

    def start(self) -> None:
        """A projection is about to be packed."""
        if self._done or not self._shown:
            return
        self._started = self._last = self._clock()
        if self._stream.isatty():
            self._bar = tqdm(total=self._total, desc="Packing the river", file=self._stream)

    def step(self) -> bool:
        """A projection is packed; returns whether it was the last."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
            if self._done == self._total:
                self._bar.close()
        elif self._shown:
            self._line()
        return self._done == self._total

    def _line(self) -> None:
        now = self._clock()
        if now - self._last < EVERY or self._done == self._total:
            return
        self._last = now
        left = (now - self._started) / self._done * (self._total - self._done)
        self._log(
            f"River: {self._done} of {self._total} projections in 4 bit "
            f"({100 * self._done // self._total} %), about {left:.0f} s left"
        )
