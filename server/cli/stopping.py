"""SIGTERM while the model loads.

A replacement for one function of vLLM's server. vLLM 0.32 raises KeyboardInterrupt
from the handler that is in force until uvicorn sets its own
(``entrypoints/launchers/api_server/entry.py``, ``run_server``), and the context in which it waits
for its engine takes a KeyboardInterrupt for the end of the wait (``utils/network_utils.py``,
``zmq_socket_ctx``): the signal is lost, the server goes on loading and serves. To be removed when
``tests/reliability/test_crash.py::test_ended_while_it_loads`` passes without it. Upstream:
https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/utils/network_utils.py
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm.entrypoints.launchers.api_server import entry

from river_vllm.startup import Stage, mark


@contextmanager
def sigterm_heard_while_loading() -> Iterator[None]:
    """Inside, a server that is told to stop before it serves ends, with the status of a SIGTERM.

    vLLM stops its engine and workers on the way out.
    """
    inner = entry.run_server_worker

    @functools.wraps(inner)
    async def run_server_worker(*args: Any, **kwargs: Any) -> None:
        # vLLM has set its handler just before this call.
        signal.signal(signal.SIGTERM, _end)
        await inner(*args, **kwargs)

    entry.run_server_worker = run_server_worker
    try:
        yield
    finally:
        entry.run_server_worker = inner


def _end(number: int, _frame: object) -> None:
    mark(Stage.STOPPED)
    print("river-vllm: told to stop while the model was loading", file=sys.stderr, flush=True)
    # Once is enough: what stops the engine must not be interrupted.
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)
