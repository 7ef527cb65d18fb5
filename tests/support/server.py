"""A server process of its own process group, and clients that do not retry."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

START_SECONDS = 900.0
"""A CPU without AVX-512 that has to compile takes five minutes, a busy one more."""
STOP_SECONDS = 30.0
NAME = "river-test"


class RiverServer:
    """``river-vllm serve`` (or another command) until the block ends.

    Args:
        model: folder of the checkpoint.
        log: file for the server's output.
        options: further command-line options.
        command: what to run instead of River's own command.
        ready: a route that answers 200 once the server serves.
    """

    def __init__(
        self,
        model: Path,
        log: Path,
        options: tuple[str, ...] = (),
        command: tuple[str, ...] = (sys.executable, "-m", "server.cli.main", "serve"),
        environment: dict[str, str] | None = None,
        positional: bool = True,
        ready: str = "/ready",
    ) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        named = (str(model),) if positional else ("--model", str(model))
        self._command = [
            *command,
            *named,
            *("--port", str(self.port), "--host", "127.0.0.1"),
            *("--served-model-name", NAME, "--max-model-len", "1024"),
            *("--max-num-seqs", "16", "--kv-cache-memory-bytes", str(256 << 20)),
            *options,
        ]
        self._environment = {
            key: value
            for key, value in os.environ.items()
            if key not in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_ALLOW_INSECURE_SERIALIZATION")
        } | {"VLLM_LOGGING_LEVEL": "INFO", **(environment or {})}
        self._ready = ready
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the process; ``__enter__`` also waits until it serves."""
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                self._command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        if self.process is None:
            self.launch()
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> int | None:
        """SIGTERM, and SIGKILL for what is left of the group after a while."""
        process = self.process
        if process is None:
            return None
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def openai(self, **options: Any) -> Any:
        """The official client."""
        from openai import OpenAI

        return OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120, **options
        )

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **options)

    def metrics(self) -> dict[str, float]:
        """Samples of ``/metrics`` by name and labels."""
        lines = self.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def sum_of(self, name: str, **labels: str) -> float:
        """All samples of one series that have these labels, whatever their others."""
        return total(self.metrics(), name, **labels)

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended at start:\n{self.tail()}")
            try:
                if httpx.get(self.url + self._ready, timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise RuntimeError(f"the server was not ready in time:\n{self.tail()}")


def total(samples: dict[str, float], name: str, **labels: str) -> float:
    """``RiverServer.sum_of`` for samples that were read before."""
    given = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value
        for key, value in samples.items()
        if key.partition("{")[0] == name and all(label in key for label in given)
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
