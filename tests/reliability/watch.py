"""What a server holds, sampled while it works: memory, files, tasks; and what its metrics say."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import psutil

from tests.support.probe import PATH
from tests.support.processes import Belongings
from tests.support.server import RiverServer

MIB = 1 << 20


@dataclass
class Watch:
    """A thread that samples the memory of all of a server's processes every ``period`` seconds."""

    server: RiverServer
    period: float
    seconds: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._end = threading.Event()
        self._processes = Belongings.of(self.server.process.pid).processes
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        while not self._end.wait(self.period):
            self.seconds.append(time.monotonic() - start)
            self.mib.append(sum(p.memory_info().rss for p in self._processes) / MIB)

    def slope(self) -> float:
        """MiB a minute over the second half; the first is warm-up."""
        half = len(self.mib) // 2
        per_second, _ = np.polyfit(self.seconds[half:], self.mib[half:], 1)
        return float(per_second) * 60

    def growth(self) -> float:
        """MiB from the end of the first half to the end, medians of a few samples."""
        half = len(self.mib) // 2
        few = max(1, half // 4)
        return float(np.median(self.mib[-few:]) - np.median(self.mib[half : half + few]))


def held(server: RiverServer) -> dict[str, int]:
    """Open files of each process and tasks of the event loop, to be read when it is idle."""
    processes = Belongings.of(server.process.pid).processes
    files = {f"files of {_title(p)}": p.num_fds() for p in processes}
    return {**files, "processes": len(processes), "tasks": int(server.get(PATH).text)}


def totals(server: RiverServer) -> dict[str, float]:
    """Counters of vLLM and of River that must agree."""
    return {
        "finished": server.sum_of("vllm:request_success_total"),
        "generated": server.sum_of("vllm:generation_tokens_total"),
        "generated, finished": server.sum_of("vllm:request_generation_tokens_sum"),
        "first tokens": server.sum_of("vllm:time_to_first_token_seconds_count"),
        "river": server.sum_of("river_tokens_total"),
        "depths": server.sum_of("river_exit_layer_count"),
        "stats": float(server.get("/river/stats").json()["tokens"]),
    }


def _title(process: psutil.Process) -> str:
    return " ".join(process.cmdline())[:40] or str(process.pid)
