"""A run in several processes (pytest-xdist): each has a core, and what shares an engine is in one.

No torch here: it counts the cores when it is imported.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from xdist.scheduler import LoadScopeScheduling

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
"""``gw0``, ``gw1``, …; None where all tests run in one process."""
GIB_EACH = 8
"""Memory of one process with all the engines and servers that it starts."""
MOST = 4
"""Groups of tests that take long; more processes would wait for the last of them."""
TOGETHER = {
    "server": """
        console/test_console docs/test_requests
        reliability/test_cancel reliability/test_poison reliability/test_schema
        reliability/test_soak reliability/test_stock
        server/test_openai server/test_routes
    """,
    "other servers": """
        reliability/test_crash reliability/test_stress
        server/test_adapters server/test_one_flag server/test_refusals server/test_verified
        server/test_ways
    """,
    "SmolLM2": """
        engine/test_exact engine/test_kv engine/test_river engine/test_river_head
        engine/test_teacher_forced engine/test_verified
    """,
    "Qwen2": """
        engine/test_batching engine/test_connectors
        engine/test_memory_options engine/test_modes engine/test_offload
        engine/test_prefix_isolation engine/test_quantize engine/test_refusals
    """,
}
"""Files that share the session's server or engines, and those that start servers of their own:
before the engines, which stay in memory. Every other file is a group of its own."""
_GROUPS = {f"tests/{name}.py": group for group, names in TOGETHER.items() for name in names.split()}


def processes() -> int:
    """How many run side by side on this machine."""
    # Rounded: of a machine's 16 GiB the system shows a little less.
    memory = round(psutil.virtual_memory().total / 2**30)
    return max(1, min(len(os.sched_getaffinity(0)), memory // GIB_EACH, MOST))


def keep_to_one_core() -> None:
    """Nothing that this process and its children compute waits for a core that another one has."""
    if WORKER is not None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})


def longest_first(items: list[pytest.Item]) -> None:
    """The groups above, then other engines and servers, then what takes seconds."""
    order = list(TOGETHER)

    def place(item: pytest.Item) -> int:
        group = _GROUPS.get(_file(item.nodeid))
        return order.index(group) if group else len(order) + (_starts_nothing(item))

    items.sort(key=place)


class Scheduler(LoadScopeScheduling):
    """Gives each process a group of files at a time, in the order of the collection."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = _file(nodeid)
        return _GROUPS.get(file, file)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def _starts_nothing(item: pytest.Item) -> bool:
    return item.get_closest_marker("engine") is None


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Inside, no other process is inside with the same ``lock``, a file that stays."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
