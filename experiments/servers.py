"""Starts servers for a measurement, each on a free port, with the same engine settings."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

NAME = "model"
START_SECONDS = 1800.0


class Server:
    """A server process that runs until the block ends; ready after ``wait``.

    Args:
        label: name of the log.
        model: folder of the checkpoint.
        logs: folder of the logs.
        options: more options of the command line.
        river: whether to run ``river-vllm serve``; else vLLM's server.
        other: command of another server; it gets ``--host`` and ``--port``.
        module: the module that runs vLLM's server.
        environment: variables besides those of this process.
    """

    def __init__(
        self,
        label: str,
        model: str,
        logs: Path,
        options: Sequence[str] = (),
        river: bool = False,
        other: Sequence[str] = (),
        module: str = "vllm.entrypoints.openai.api_server",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        engine = [
            *("--served-model-name", NAME, "--max-model-len", "2048", "--max-num-seqs", "32"),
            *("--kv-cache-memory-bytes", str(1 << 29)),
        ]
        if other:
            command = [*other, *address, *options]
        elif river:
            start = ["-m", "server.cli.main", "serve", model]
            command = [sys.executable, *start, *address, *engine, *options]
        else:
            start = ["-m", module, "--model", model]
            command = [sys.executable, *start, *address, *engine, *options]
        variables = {**os.environ, "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", **(environment or {})}
        self.log = logs / f"{label}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, poll: float = 1.0) -> None:
        """Wait until the server answers, asking every ``poll`` seconds.

        Raises:
            RuntimeError: the server ended or was not ready in time; shows the end of its log.
        """
        deadline = time.monotonic() + START_SECONDS
        with httpx.Client(timeout=5) as client:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    raise RuntimeError(f"the server ended at start:\n{self._tail()}")
                try:
                    if client.get(f"{self.url}/v1/models").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(poll)
        raise RuntimeError(f"the server was not ready in time:\n{self._tail()}")

    def metrics(self) -> dict[str, float]:
        """Samples of ``/metrics`` by name, summed over labels; empty for a peer without them."""
        found: dict[str, float] = {}
        answer = httpx.get(f"{self.url}/metrics", timeout=30)
        for line in answer.text.splitlines() if answer.is_success else ():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def memory_mib(self) -> float:
        """Sum of the peak resident memory of the server's processes."""
        total = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
                if os.getpgid(int(status.parent.name)) != self.process.pid:
                    continue
            except (OSError, ProcessLookupError):
                continue
            lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            total += int(lines.get("VmHWM", "0 kB").split()[0])
        return total / 1024

    def _tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def compare(a: str, b: str, *options: str) -> Any:
    """The JSON report of ``bench compare`` on two servers.

    Raises:
        RuntimeError: the command failed; shows its output.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [
            *(sys.executable, "-m", "server.cli.main", "bench", "compare", a, b),
            *("--api", "completions", "--ignore-eos", "--cache-salt", "--no-progress"),
            # The first answer of a server that was idle is late: wake it.
            *("--warmup", "2", "--wake", "1", "--json", file.name, *options),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"bench compare failed:\n{done.stdout}{done.stderr}")
        return json.loads(Path(file.name).read_text())


def machine() -> str:
    """Number and model of the cores that this process may use."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{len(os.sched_getaffinity(0))} cores {names[0] if names else platform.machine()}"
