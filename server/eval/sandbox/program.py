"""One program: its process, its folder, and whether it reached its end."""

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

_SUPERVISOR = Path(__file__).with_name("supervisor.py")

_GRACE_SECONDS = 60.0
"""Beyond a program's wall time, for its supervisor to start, to clean up and to report."""


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
    processes: int = 32
    """And threads; 0 where those of the user's other programs would count too."""


class SandboxError(Exception):
    """The machinery failed; nothing is known about the program."""


def passes(source: str, words: tuple[str, ...], limits: Limits | None = None) -> bool:
    """Whether ``source`` runs to its end, without an exception and within its limits.

    It gets a folder of its own that is removed afterwards, an environment without the caller's
    variables, no input, and its output goes nowhere.

    Args:
        words: stand before its command and keep it apart (``isolation``).

    Raises:
        SandboxError: its supervisor could not be started or did not report.
    """
    limits = limits or Limits()
    # Processes that outlive the program may still write; then some of the folder stays.
    with (
        tempfile.TemporaryDirectory(prefix="river-eval-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as report,
    ):
        program = Path(folder, "program.py")
        program.write_text(source, encoding="utf-8", errors="backslashreplace")
        command = [*words, sys.executable, "-I", str(_SUPERVISOR)]
        try:
            process = subprocess.Popen(
                [*command, json.dumps(asdict(limits)), str(program)],
                stdin=subprocess.DEVNULL,
                stdout=report,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxError(f"{command[0]}: {error.strerror}") from None
        _wait(process, limits.wall_seconds + _GRACE_SECONDS)
        report.seek(0)
        told = report.read(1 << 16).decode("utf-8", "replace").strip()
    if told not in ("passed", "failed"):
        raise SandboxError(f"a program's supervisor failed: {told[-300:] or 'no report'}")
    return told == "passed"


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Until the supervisor has ended; it ends its program when it is asked to end."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL)
    finally:
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
