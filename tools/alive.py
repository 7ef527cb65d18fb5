#!/usr/bin/env python3
"""Run a command, and print every few seconds its time so far and the time to go.

    alive.py "installing vLLM (3.4 GB)" 200 COMMAND ...

pip prints nothing for minutes while it unpacks. The command keeps its terminal, its output and its
exit status. The example's command usually takes 200 seconds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence

EVERY = 8.0
"""Seconds between two lines; a busy machine may be 2 s late."""


def line(doing: str, usual: float, passed: float) -> str:
    """The line for ``passed`` seconds of work that usually takes ``usual``."""
    left = usual - passed
    ahead = f"about {max(5, round(left / 5) * 5)} s to go" if left > 0 else "longer than usual"
    return f"{doing}, {passed:.0f} s so far, {ahead}"


def run(
    doing: str,
    usual: float,
    command: Sequence[str],
    say: Callable[[str], None],
    every: float = EVERY,
) -> int:
    """Run ``command``; its exit status, or 128 plus the signal that ended it."""
    begun = time.monotonic()
    process = subprocess.Popen(command)
    while True:
        try:
            status = process.wait(every)
        except subprocess.TimeoutExpired:
            say(line(doing, usual, time.monotonic() - begun))
        except KeyboardInterrupt:
            # Ctrl-C reaches the command too, which ends by itself.
            process.wait()
            return 130
        else:
            return status if status >= 0 else 128 - status


def main(argv: Sequence[str]) -> int:
    if len(argv) < 3 or not argv[1].isdigit():
        print("usage: alive.py DOING SECONDS COMMAND ...", file=sys.stderr)
        return 2
    return run(argv[0], float(argv[1]), argv[2:], lambda text: print(text, flush=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
