"""An engine that ends with the process that started it, also while its model loads.

vLLM 0.32's engine learns that its server is gone only once it serves: killed with SIGKILL before
that, a server leaves an engine and a worker behind that wait for it for ever. SIGTERM alone is no
help, the engine keeps it for the end of its construction (``v1/engine/core.py``,
``run_engine_core``).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.process import BaseProcess

ENGINE = "EngineCore"
"""How the names of vLLM's engine processes begin (``v1/engine/utils.py``)."""
GRACE_SECONDS = 10.0
"""For vLLM to end by itself, as it does once it serves."""
_watched: set[int] = set()


def end_with_parent(grace: float = GRACE_SECONDS) -> None:
    """In an engine's process, watch the one that started it; elsewhere do nothing.

    Args:
        grace: seconds between SIGTERM and the hard end of the engine and its workers.
    """
    parent = multiprocessing.parent_process()
    named = multiprocessing.current_process().name.startswith(ENGINE)
    if parent is None or not named or os.getpid() in _watched:
        return
    _watched.add(os.getpid())
    threading.Thread(
        target=_watch, args=(parent, grace), daemon=True, name="river-parent-watch"
    ).start()


def _watch(parent: BaseProcess, grace: float) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    for worker in multiprocessing.active_children():
        worker.kill()
    os.kill(os.getpid(), signal.SIGKILL)
