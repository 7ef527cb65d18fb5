"""Prints the stages of a starting server, line by line.

The engine's processes mark their stages (``river_vllm/host.py``); a thread of the user's command
prints the lines.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from river_vllm.host import STAGES_FILE, Stage, file_named_by, mark, marks

STAGES = {
    Stage.IMPORT: "importing vLLM and reading the configuration",
    Stage.ENGINE: "starting vLLM's engine",
    Stage.WEIGHTS: "loading the weights",
    Stage.QUANTIZE: "making the 4-bit weights (once)",
    Stage.GRAPH: "reading the compiled model",
    Stage.COMPILE: "compiling the model for exact steps (once)",
    Stage.COMPILE_RIVER: "compiling the model for steps that exit (once)",
    Stage.MEASURE: "measuring what a step costs",
    Stage.SERVE: "starting the HTTP server",
}
"""Text of each stage for the user, in order."""
EVERY = 8.0
"""Seconds between two lines within a stage: a busy machine may wake the thread 2 s late."""
POLL = 0.25
SERVE_SECONDS = 60.0
"""Time for the HTTP server to listen; a later one counts as unreachable from here, and the lines
end."""
EXAMPLE = (
    "curl {url}/v1/chat/completions -H 'Content-Type: application/json' "
    '-d \'{{"messages": [{{"role": "user", "content": "Hello"}}]}}\''
)


class Narrator:
    """A thread that prints the stages until the server is ready, or until ``stop``.

    Args:
        file: where the processes mark their stages.
        clock: monotonic seconds; the command begins now.
    """

    def __init__(
        self, file: Path, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = file
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._begun = clock()
        self._said: tuple[Stage, float] | None = None
        self._args: Namespace | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="river-narrator")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def watch(self, args: Namespace) -> None:
        """Set the server's arguments, which give its address."""
        self._args = args

    def look(self, found: list[tuple[float, Stage]], now: float) -> None:
        """Print the current stage if it is new, or if ``EVERY`` seconds have passed."""
        if not found:
            return
        # Every rank marks its stages; a stage begins with the first rank.
        stage = max((stage for _, stage in found), key=list(Stage).index)
        if stage not in STAGES:
            return
        if self._said is not None and self._said[0] is stage and now - self._said[1] < EVERY:
            return
        self._said = (stage, now)
        self._say(f"{STAGES[stage]}, {now - self._begun:.0f} s so far")

    def _say(self, text: str) -> None:
        print(f"River: {text}", file=self._stream, flush=True)

    def _run(self) -> None:
        while not self._stopped.wait(POLL):
            found = marks(self._file)
            now = self._clock()
            self.look(found, now)
            args = self._args
            if args is None or not found or found[-1][1] is not Stage.SERVE:
                continue
            if not has_server(args) or listens(args):
                self._finish(args, self._clock() - self._begun)
                return
            if now - found[-1][0] >= SERVE_SECONDS:
                mark(Stage.READY)
                return

    def _finish(self, args: Namespace, seconds: float) -> None:
        """Print the last lines; an engine without an HTTP server has no address."""
        mark(Stage.READY)
        if not has_server(args):
            self._say(f"engine ready after {seconds:.0f} s")
            return
        url = address(args, _reachable(args.host))
        self._say(f"ready after {seconds:.0f} s at {url}")
        if not (args.uds or args.api_key or args.ssl_keyfile):
            self._say(f"try it: {EXAMPLE.format(url=url)}")


@contextmanager
def narrated() -> Iterator[Narrator]:
    """Print the stages of a start inside the block until the server is ready."""
    with file_named_by(STAGES_FILE) as file:
        narrator = Narrator(file)
        mark(Stage.IMPORT)
        narrator.start()
        try:
            yield narrator
        finally:
            narrator.stop()


def has_server(args: Namespace) -> bool:
    """Whether this command serves HTTP; a node beside the first one may run engines only."""
    return not args.headless and args.api_server_count != 0


def address(args: Namespace, host: str) -> str:
    """Address of a server with these arguments, with ``host`` as its name."""
    if args.uds:
        return f"unix:{args.uds}"
    scheme = "https" if args.ssl_keyfile and args.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{args.port}"


def listens(args: Namespace) -> bool:
    """Whether the server accepts connections: its socket is bound early, and listens last."""
    try:
        if args.uds:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1)
                probe.connect(args.uds)
        else:
            socket.create_connection((_reachable(args.host), args.port), timeout=1).close()
    except OSError:
        return False
    return True


def _reachable(host: str | None) -> str:
    """The host name for a client on this machine."""
    return {None: "127.0.0.1", "": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(
        host, host or "127.0.0.1"
    )
