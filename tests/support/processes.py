"""A server's processes and what they hold outside themselves."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.poll import poll_until


def forked(function: Callable[..., Any], *args: Any) -> Any:
    """What ``function`` returns in a copy of this process, which it may change as it likes."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *args).result(timeout=60)


@dataclass(frozen=True)
class Belongings:
    """The processes of a server at one moment, and their files in shared memory."""

    processes: list[psutil.Process]
    files: set[Path]

    @classmethod
    def of(cls, pid: int) -> Belongings:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
        return cls(processes, {path for p in processes for path in _shared_files(p)})

    def named(self, pattern: str) -> psutil.Process:
        """The one process whose title matches, such as ``VLLM::EngineCore``."""
        (found,) = [p for p in self.processes if re.search(pattern, " ".join(p.cmdline()))]
        return found

    def assert_gone(self, seconds: float) -> None:
        """All have ended, by themselves, and have taken their shared memory with them."""
        poll_until(lambda: not self.alive(), seconds, f"end of {self.alive()}")
        left = {path for path in self.files if path.exists()}
        assert not left, f"left in shared memory: {left}"

    def alive(self) -> list[psutil.Process]:
        return [p for p in self.processes if p.is_running() and _status(p) != psutil.STATUS_ZOMBIE]

    def kill(self) -> None:
        """For a test that has failed: nothing of it may outlive it."""
        for process in self.alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _status(process: psutil.Process) -> str:
    try:
        status: str = process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE
    return status


def _shared_files(process: psutil.Process) -> set[Path]:
    try:
        maps = Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return set()
    names = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "/dev/shm/" in line}
    return {Path(name) for name in names if not name.endswith("(deleted)")}
