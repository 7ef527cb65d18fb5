"""Ends an engine with its parent process, in any state of both.

A server that is killed with SIGKILL leaves vLLM 0.32's engine and workers behind: for more than a
quarter of an hour while the model loads, and for more than 40 s while a request runs. While it
loads, the engine defers SIGTERM (``v1/engine/core.py``, ``run_engine_core``).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.process import BaseProcess

ENGINE = "EngineCore"
"""Prefix of the names of vLLM's engine processes (``v1/engine/utils.py``)."""
GRACE_SECONDS = 10.0
"""Time in which vLLM may end by itself, as a serving engine does on SIGTERM."""
WATCH = "river-parent-watch"


def end_with_parent(grace: float = GRACE_SECONDS) -> None:
    """In an engine's process, watch the parent process; elsewhere do nothing.

    Args:
        grace: seconds between SIGTERM and the hard end of the engine and its workers.
    """
    parent = multiprocessing.parent_process()
    named = multiprocessing.current_process().name.startswith(ENGINE)
    watched = any(thread.name == WATCH for thread in threading.enumerate())
    if parent is None or not named or watched:
        return
    threading.Thread(target=_watch, args=(parent, grace), daemon=True, name=WATCH).start()


def _watch(parent: BaseProcess, grace: float) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    for worker in multiprocessing.active_children():
        worker.kill()
    os.kill(os.getpid(), signal.SIGKILL)
