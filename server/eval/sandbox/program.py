"""One program: its process, its folder, what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from server.eval.sandbox.isolation import Isolation

PASSED = "passed"

PROCESSES = 32
"""Processes and threads; only where they can be counted apart from the user's others."""

_SUPERVISOR = Path(__file__).with_name("supervisor.py")

_GRACE_SECONDS = 60.0
"""Beyond a program's wall time, for its supervisor to start, to clean up and to report."""

_REPORT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one program; each process that it starts has them anew, but for the wall time."""

    cpu_seconds: int = 5
    wall_seconds: float = 60.0
    """A backstop for programs that wait; generous, so that a busy machine changes no verdict."""
    memory_mib: int = 1024
    """Address space."""
    file_bytes: int = 1 << 20
    """Size of each file that it writes."""
    open_files: int = 64


class SandboxError(Exception):
    """The machinery failed; nothing is known about the program."""


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """How a program ended."""

    result: str
    """``passed``, the name of the exception, ``CPU time``, ``wall time``, ``killed by SIG…``,
    or ``left early``: it ended itself before its tests had ended."""
    detail: str = ""
    cpu_seconds: float = 0.0


def run_program(source: str, isolation: Isolation, limits: Limits | None = None) -> ProgramResult:
    """Run ``source`` to its end or to a limit.

    It gets a folder of its own that is removed afterwards, an environment without the caller's
    variables, no input, and its output goes nowhere.

    Raises:
        SandboxError: its supervisor could not be started or did not report.
    """
    limits = limits or Limits()
    processes = PROCESSES if isolation.counts_processes else None
    # Processes that outlive the program may still write; then some of the folder stays.
    with (
        tempfile.TemporaryDirectory(prefix="river-eval-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as report,
    ):
        program = Path(folder, "program.py")
        program.write_text(source, encoding="utf-8", errors="backslashreplace")
        words = [*isolation.words, sys.executable, "-I", str(_SUPERVISOR)]
        words += [json.dumps(asdict(limits) | {"processes": processes}), str(program)]
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=report,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(f"{words[0]}: {error.strerror}") from None
        _wait(process, limits.wall_seconds + _GRACE_SECONDS)
        report.seek(0)
        return _read(report.read(_REPORT_BYTES).decode("utf-8", "replace"), limits)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Until the supervisor has ended; it ends its program when it is asked to end."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
    finally:
        if process.returncode is None:
            _signal(process, signal.SIGTERM)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _read(text: str, limits: Limits) -> ProgramResult:
    try:
        report = json.loads(text)
        told = json.loads(report["told"]) if report["told"] else None
    except (ValueError, KeyError, TypeError):
        shown = text.strip()[-300:] or "no report"
        raise SandboxError(f"a program's supervisor failed: {shown}") from None
    cpu = float(report["cpu_seconds"])
    result, detail = told or _end(report, cpu, limits)
    return ProgramResult(result, detail, cpu)


def _end(report: dict[str, Any], cpu: float, limits: Limits) -> tuple[str, str]:
    """Of a program that said nothing itself."""
    number = report["signal"]
    if not report["in_time"]:
        return "wall time", f"more than {limits.wall_seconds:g} s"
    if number == signal.SIGXCPU or (number == signal.SIGKILL and cpu >= limits.cpu_seconds):
        return "CPU time", f"more than {limits.cpu_seconds} s"
    if number is not None:
        return f"killed by {signal.Signals(number).name}", ""
    return "left early", "it ended itself before its tests had ended"
