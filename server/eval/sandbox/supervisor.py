"""Runs one program under limits and prints "passed" or "failed".

Started as a script of its own, ``python -I supervisor.py LIMITS PROGRAM``; it imports nothing of
this package. As the first process of a PID namespace it takes every process of the program with
it when it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
import types
from pathlib import Path
from typing import NoReturn

_ENDS = {signal.SIGCHLD, signal.SIGTERM}

_PASSED = b"passed"


def main() -> None:
    limits, program = json.loads(sys.argv[1]), sys.argv[2]
    source = Path(program).read_text(encoding="utf-8")
    reading, writing = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reading)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
        _run(source, limits, writing)
    with contextlib.suppress(OSError):  # whichever of the two comes first; it may have ended
        os.setpgid(child, child)
    os.close(writing)
    _wait(child, limits["wall_seconds"])
    # Not reaped yet, so the child still holds its number and the group is no other's.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.set_blocking(reading, False)  # processes that the program started may hold the other end
    told = b""
    with contextlib.suppress(BlockingIOError):
        told = os.read(reading, len(_PASSED))
    print("passed" if told == _PASSED else "failed", flush=True)


def _wait(child: int, seconds: float) -> None:
    """Until the child has ended or stopped, the time is over, or the supervisor is to end."""
    end = time.monotonic() + seconds
    seen = os.WEXITED | os.WSTOPPED | os.WNOWAIT | os.WNOHANG
    # As the first process it is told of the ends of others too, which the program left behind.
    while os.waitid(os.P_PID, child, seen) is None:
        told = signal.sigtimedwait(_ENDS, max(0.0, end - time.monotonic()))
        if told is None or told.si_signo == signal.SIGTERM:
            return


def _run(source: str, limits: dict[str, int], report: int) -> NoReturn:
    """The program's process: nothing it prints goes anywhere, its end goes to ``report``."""
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        sys.argv[:] = ["program.py"]
        _limit(limits)
        # A module that can be looked up, since data classes do; not "__main__", whose usual
        # guard would run what an answer shows as an example of use.
        module = sys.modules["program"] = types.ModuleType("program")
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
        if os.getpid() == os.getpgid(0):  # not a copy of itself that the program made
            os.write(report, _PASSED)
    finally:
        os._exit(0)


def _limit(limits: dict[str, int]) -> None:
    cpu = limits["cpu_seconds"]
    wanted = {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_FSIZE: (limits["file_bytes"],) * 2,
        resource.RLIMIT_NOFILE: (limits["open_files"],) * 2,
        resource.RLIMIT_AS: (limits["memory_mib"] << 20,) * 2,
    }
    if limits["processes"]:
        wanted[resource.RLIMIT_NPROC] = (limits["processes"],) * 2
    for kind, values in wanted.items():
        _, most = resource.getrlimit(kind)
        soft, hard = (v if most == resource.RLIM_INFINITY else min(v, most) for v in values)
        resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    main()
