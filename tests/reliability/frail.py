"""A server on a tiny random checkpoint whose forward passes can be made to suffer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx

from tests.support.faults import Faults
from tests.support.server import NAME, RiverServer

STALL_SECONDS = 2.0
DRAIN_SECONDS = 30
QUEUE = 6
OPTIONS = (
    "--enforce-eager",
    *("--river-stall-seconds", str(STALL_SECONDS)),
    *("--max-num-batched-tokens", "32", "--block-size", "32"),
    *("--max-num-queued-reqs", str(QUEUE)),
    *("--shutdown-timeout", str(DRAIN_SECONDS)),
)


class FrailServer(RiverServer):
    """Queue limit, a drain at its end, and ``faults`` to order."""

    def __init__(
        self, model: Path, folder: Path, options: tuple[str, ...] = OPTIONS, **environment: str
    ) -> None:
        self.faults = Faults(folder / "faults")
        # Several at a time beside the session's server: 1 GiB for K/V, not 4.
        environment |= {**self.faults.environment, "VLLM_CPU_KVCACHE_SPACE": "1"}
        super().__init__(model, folder / "log", options, environment=environment)


class InFlight:
    """A request on its way, in a thread of its own.

    Attributes:
        started: set once the first bytes have come (streams only).
        lines: what a stream has brought so far.
        status: of the response, None while there is none or if the connection broke.
        error: the connection's error.
    """

    def __init__(self, server: RiverServer, stream: bool, **fields: Any) -> None:
        self._url = server.url + "/v1/completions"
        self._body = {
            **{"model": NAME, "prompt": "One, two,", "max_tokens": 900, "temperature": 0},
            **{"ignore_eos": True, "stream": stream, **fields},
        }
        self.started = threading.Event()
        self.lines: list[str] = []
        self.status: int | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json=self._body, timeout=120) as response:
                self.status = response.status_code
                for line in response.iter_lines():
                    self.lines.append(line)
                    self.started.set()
        except httpx.HTTPError as error:
            self.error = error
        self.started.set()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the client still waits for an answer"

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def failed(self) -> bool:
        """Whether the client can tell that its answer is not complete: an interrupted engine may
        still say so itself."""
        told = '"error"' in self.text or '"finish_reason":"abort"' in self.text
        return self.error is not None or self.status != 200 or told
