"""While a server starts: what it is doing and about how long it will take, line by line.

The engine's processes say which stage they are in (``river_vllm/startup.py``); the lines come from
a thread of the command that the user started.
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

from river_vllm.folders import user_cache
from river_vllm.startup import STAGES_FILE, Stage, file_named_by, mark, marks
from server.cli.stage_times import STAGES, StageTimes, StartRecord, weight_bytes

EVERY = 8.0
"""Seconds between two lines within a stage: a busy machine may wake the thread two late."""
POLL = 0.25
SERVE_SECONDS = 60.0
"""How long the HTTP server may take to listen; later it is taken for one that this machine cannot
reach, and nothing more is said."""
EXAMPLE = (
    "curl {url}/v1/chat/completions -H 'Content-Type: application/json' "
    '-d \'{{"messages": [{{"role": "user", "content": "Hello"}}]}}\''
)


class Narration:
    """Turns marks into lines.

    Args:
        begun: monotonic seconds when the command began.
        say: takes a line.
    """

    def __init__(self, begun: float, say: Callable[[str], None]) -> None:
        self._begun = begun
        self._say = say
        self._entered: dict[Stage, float] = {}
        self._said: tuple[Stage, float] | None = None
        self.times = StageTimes()
        """To be replaced once the model is known."""

    def look(self, found: list[tuple[float, Stage]], now: float) -> None:
        """Say what is going on if it is new, or if nothing was said for a while."""
        for seconds, stage in found:
            # Every rank of an engine marks its stages, and a stage begins with the first.
            self._entered.setdefault(stage, seconds)
        if not self._entered:
            return
        stage = max(self._entered, key=list(Stage).index)
        if stage not in STAGES:
            return
        if self._said is not None and self._said[0] is stage and now - self._said[1] < EVERY:
            return
        self._said = (stage, now)
        left = self.times.remaining(stage, now - self._entered[stage])
        ahead = f"about {_rounded(left)} to go" if left >= 1 else "longer than expected"
        self._say(f"{STAGES[stage].words}, {now - self._begun:.0f} s so far, {ahead}")

    def seconds(self, ready: float) -> dict[str, float]:
        """What each stage took, to the next one or to ``ready``."""
        stages = sorted(self._entered, key=list(Stage).index)
        ends = [self._entered[stage] for stage in stages[1:]] + [ready]
        pairs = zip(stages, ends, strict=True)
        return {
            stage.value: round(max(0.0, end - self._entered[stage]), 2)
            for stage, end in pairs
            if stage in STAGES
        }

    def ready(self, now: float, url: str | None, example: bool) -> None:
        """The last line of a start; ``url`` is None for an engine without an HTTP server."""
        if url is None:
            self._say(f"engine ready after {now - self._begun:.0f} s")
            return
        self._say(f"ready after {now - self._begun:.0f} s at {url}")
        if example:
            self._say(f"try it: {EXAMPLE.format(url=url)}")


def _rounded(seconds: float) -> str:
    """To what an estimate is worth."""
    step = 1 if seconds < 10 else 5 if seconds < 120 else 30
    return f"{max(step, round(seconds / step) * step)} s"


class Narrator:
    """The thread; it ends when the server is ready, or with ``stop``."""

    def __init__(
        self, file: Path, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = file
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._narration = Narration(clock(), self._say)
        self._args: Namespace | None = None
        self._record: StartRecord | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="river-narrator")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def expect_model(self, model: str) -> None:
        """``model`` is known, unless one was before.

        Args:
            model: folder or hub id.
        """
        if self._record is None:
            self.expect(StartRecord(user_cache(), model), weight_bytes(model))

    def expect(self, record: StartRecord, checkpoint_bytes: int) -> None:
        """Which model it is, is known, and with it what to expect."""
        self._narration.times = StageTimes(record.read(), checkpoint_bytes)
        self._record = record

    def watch(self, args: Namespace) -> None:
        """The server's arguments are known, and with them where it will listen."""
        self._args = args
        self._narration.times.compiles = not args.enforce_eager

    def _say(self, text: str) -> None:
        print(f"River: {text}", file=self._stream, flush=True)

    def _run(self) -> None:
        while not self._stopped.wait(POLL):
            found = marks(self._file)
            now = self._clock()
            self._narration.look(found, now)
            args = self._args
            if args is None or not found or found[-1][1] is not Stage.SERVE:
                continue
            if not has_server(args) or listens(args):
                self._finish(args, self._clock())
                return
            if now - found[-1][0] >= SERVE_SECONDS:
                mark(Stage.READY)
                return

    def _finish(self, args: Namespace, now: float) -> None:
        mark(Stage.READY)
        if self._record is not None:
            self._record.write(self._narration.seconds(now))
        plain = not (args.uds or args.api_key or args.ssl_keyfile)
        url = address(args, _reachable(args.host)) if has_server(args) else None
        self._narration.ready(now, url, example=plain)


@contextmanager
def narrated(model: str | None) -> Iterator[Narrator]:
    """A start inside is told about until it is ready.

    Args:
        model: folder or hub id, if it is known by now.
    """
    with file_named_by(STAGES_FILE) as file:
        narrator = Narrator(file)
        if model is not None:
            narrator.expect_model(model)
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
    """Where a server with these arguments is, by one of the names of its ``host``."""
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
    """For a client on this machine."""
    return {None: "127.0.0.1", "": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(
        host, host or "127.0.0.1"
    )
