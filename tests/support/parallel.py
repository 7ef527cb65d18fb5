"""A run in several processes (pytest-xdist): each has a core, and what shares an engine is in one.

No torch here: it counts the cores when it is imported.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
"""``gw0``, ``gw1``, …; None where all tests run in one process."""
GIB_EACH = 8
"""Memory of one process with all the engines and servers that it starts."""
MOST = 4
"""Groups of tests that take long; more processes would wait for the last of them."""


def processes() -> int:
    """How many run side by side on this machine."""
    memory = psutil.virtual_memory().total >> 30
    return max(1, min(len(os.sched_getaffinity(0)), memory // GIB_EACH, MOST))


def keep_to_one_core() -> None:
    """Nothing that this process and its children compute waits for a core that another one has."""
    if WORKER is not None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})


def arrange(items: list[pytest.Item]) -> None:
    """Give each test its group, whose tests run in one process, and begin with the long groups.

    A group is what a module names with ``pytest.mark.xdist_group``, all that ask for the session's
    server, or else a file.
    """
    if WORKER is None:
        return
    items.sort(key=lambda item: item.get_closest_marker("engine") is None)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            asks = "server" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("server" if asks else item.path.stem))


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Inside, no other process is inside with the same ``lock``, a file that stays."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
