"""Runs one program under limits and tells how it ended, as JSON on standard output.

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
import types
from pathlib import Path
from typing import Any, NoReturn

_DETAIL = 300
"""Characters of an exception's message that are kept."""

_ENDS = {signal.SIGCHLD, signal.SIGTERM}


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
    in_time = signal.sigtimedwait(_ENDS, limits["wall_seconds"]) is not None
    # Not reaped yet, so the child still holds its number and the group is no other's.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    os.set_blocking(reading, False)  # processes that the program started may hold the other end
    try:
        told = os.read(reading, 1 << 16).decode("utf-8", "replace")
    except BlockingIOError:
        told = ""
    report = {
        "told": told,
        "in_time": in_time,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }
    print(json.dumps(report), flush=True)


def _run(source: str, limits: dict[str, Any], report: int) -> NoReturn:
    """The program's process: nothing it prints goes anywhere, its verdict goes to ``report``."""
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        sys.argv[:] = ["program.py"]
        _limit(limits)
        found = _verdict(source)
        if os.getpid() == os.getpgid(0):  # not a copy of itself that the program made
            os.write(report, json.dumps(found).encode())
    finally:
        os._exit(0)


def _limit(limits: dict[str, Any]) -> None:
    cpu = limits["cpu_seconds"]
    wanted = {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_FSIZE: (limits["file_bytes"],) * 2,
        resource.RLIMIT_NOFILE: (limits["open_files"],) * 2,
        resource.RLIMIT_AS: (limits["memory_mib"] << 20,) * 2,
    }
    if limits["processes"] is not None:
        wanted[resource.RLIMIT_NPROC] = (limits["processes"],) * 2
    for kind, values in wanted.items():
        _, most = resource.getrlimit(kind)
        soft, hard = (v if most == resource.RLIM_INFINITY else min(v, most) for v in values)
        resource.setrlimit(kind, (soft, hard))


def _verdict(source: str) -> list[str]:
    """Result and detail."""
    try:
        # A module that can be looked up, since data classes do; not "__main__", whose usual
        # guard would run what an answer shows as an example of use.
        module = sys.modules["program"] = types.ModuleType("program")
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        return [type(error).__name__, _message(error)]
    return ["passed", ""]


def _message(error: BaseException) -> str:
    try:
        return str(error)[:_DETAIL]
    except BaseException:
        return ""


if __name__ == "__main__":
    main()
