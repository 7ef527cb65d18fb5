"""The machine: cache folders, the C++ compiler, and messages between the processes of a start.

vLLM's parent process learns neither the progress of a start nor the reason of a failure. So the
command names two files in the environment. The engine's processes write a line to one at each new
stage. A worker that refuses to start writes its reason to the other.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

from river_vllm.errors import RiverError

FOLDER_VARIABLE = "RIVER_CACHE_DIR"


def user_cache() -> Path:
    """``$RIVER_CACHE_DIR``, or ``river-vllm`` in the user's cache."""
    given = os.environ.get(FOLDER_VARIABLE)
    return expanded(given) if given else base("XDG_CACHE_HOME", "~/.cache") / "river-vllm"


def base(variable: str, default: str) -> Path:
    """A folder of the XDG Base Directory specification, which ignores relative values."""
    given = Path(os.environ.get(variable, ""))
    return given if given.is_absolute() else expanded(default)


def expanded(path: str) -> Path:
    """``path`` with its ``~`` replaced. For a user without a home folder, a place that holds
    nothing and cannot be written to; ``Path.expanduser`` would raise."""
    found = Path(os.path.expanduser(path))  # noqa: PTH111
    return Path(os.devnull) / found if str(found).startswith("~") else found


def unwritable(folder: Path) -> str | None:
    """Why ``folder``, made if it is not there, cannot be written to; None where it can.

    A write is tried: permissions do not bind root, and file systems may refuse for other reasons.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def text_of(path: Path, place: str) -> str:
    """The text of a user's file, with its line ends as they are.

    Args:
        place: the file as an error names it.

    Raises:
        RiverError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise RiverError(f"{place}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise RiverError(f"{place}: expected UTF-8 text") from None


def cpu_info() -> list[str]:
    """The lines of ``/proc/cpuinfo``; none where it cannot be read."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all, even if others write the same name.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


TRIAL = """\
#include <Python.h>
#include <omp.h>
#include <vector>
extern "C" int river_trial(const std::vector<float>& x) {
  return x.size() + omp_get_max_threads() + Py_IsInitialized();
}
"""
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fopenmp", "-shared")
"""Some of the flags that torch's inductor passes (``torch/_inductor/cpp_builder.py``)."""
TRIAL_SECONDS = 60.0


def cannot_compile() -> str | None:
    """Why torch cannot compile for the CPU here; None where it can.

    River's cache folder remembers a compiler that has passed; others are tried at every start.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        compiler = get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        named = os.environ.get("CXX")
        return f"CXX={named} is no C++ compiler" if named else "there is no C++ compiler (g++)"
    passed = _passed(compiler)
    # Path.exists raises where a folder on the way may not be entered.
    if passed and os.path.exists(passed):  # noqa: PTH110
        return None
    reason = _trial(compiler)
    if passed and reason is None:
        with suppress(OSError):
            passed.parent.mkdir(parents=True, exist_ok=True)
            passed.touch()
    return reason


def _trial(compiler: str) -> str | None:
    with tempfile.TemporaryDirectory(prefix="river-") as folder:
        source = Path(folder, "trial.cpp")
        source.write_text(TRIAL, encoding="utf-8")
        command = [compiler, *FLAGS, f"-I{sysconfig.get_path('include')}", str(source)]
        command += ["-o", str(Path(folder, "trial.so"))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{compiler} fails: {error}"
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    words = errors[0].strip() if errors else f"exit status {done.returncode}"
    return f"{compiler} fails: {words}"


def _passed(compiler: str) -> Path | None:
    """The file that records that ``compiler`` works; None if it or Python.h cannot be read."""
    path = Path(shutil.which(compiler) or compiler).resolve()
    with suppress(OSError):
        header = Path(sysconfig.get_path("include"), "Python.h")
        stats = [(p, p.stat().st_size, p.stat().st_mtime_ns) for p in (path, header)]
        key = hashlib.sha256(repr((stats, TRIAL, FLAGS)).encode()).hexdigest()[:16]
        return user_cache() / "compilers" / key
    return None


STAGES_FILE = "RIVER_STARTUP_FILE"
REFUSAL_FILE = "RIVER_REFUSAL_FILE"


class Stage(StrEnum):
    """Stages of a start, in their order, and its two ends."""

    IMPORT = "import"
    ENGINE = "engine"
    WEIGHTS = "weights"
    QUANTIZE = "quantize"
    GRAPH = "graph"
    COMPILE = "compile"
    COMPILE_RIVER = "compile_river"
    MEASURE = "measure"
    SERVE = "serve"
    READY = "ready"
    STOPPED = "stopped"


def mark(stage: Stage) -> None:
    """Record that this stage begins now."""
    if path := os.environ.get(STAGES_FILE):
        # A failed write must not end a start.
        with suppress(OSError), Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{time.monotonic()} {stage.value}\n")


def marks(path: Path) -> list[tuple[float, Stage]]:
    """Monotonic seconds and stage of every mark so far, without a partial last line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except OSError:
        return []
    pairs = (line.split(" ", 1) for line in lines)
    return [(float(seconds), Stage(name)) for seconds, name in pairs]


@contextmanager
def refusals_left() -> Iterator[None]:
    """In a worker: write the message of a ``RiverError`` to the command's file; raise it again."""
    try:
        yield
    except RiverError as error:
        if path := os.environ.get(REFUSAL_FILE):
            with suppress(OSError):  # the error itself must not be lost over its message
                Path(path).write_text(str(error), encoding="utf-8")
        raise


@contextmanager
def file_named_by(variable: str) -> Iterator[Path]:
    """An empty file that exists inside the block; there an environment variable names it."""
    number, name = tempfile.mkstemp(prefix="river-")
    os.close(number)
    os.environ[variable] = name
    try:
        yield Path(name)
    finally:
        os.environ.pop(variable, None)
        # The system may have cleared the file away, if the server has run for days.
        Path(name).unlink(missing_ok=True)


WAITING_LOGGER = "vllm.distributed.device_communicators.shm_broadcast"


def is_no_false_alarm(record: logging.LogRecord) -> bool:
    """Whether to log a record: not vLLM's on a long wait, while a worker loads and compiles. That
    line speaks of hanging processes, and would be the terminal's last one for minutes."""
    path = os.environ.get(STAGES_FILE)
    waiting = str(record.msg).startswith("No available shared memory broadcast block found")
    if not path or not waiting:
        return True
    found = [stage for _, stage in marks(Path(path))]
    # Without any the file has been cleared away: the server has run for days.
    return not found or Stage.READY in found


def quiet_while_starting() -> None:
    """In a process of a server that River's command has started: no alarm about a normal start."""
    if os.environ.get(STAGES_FILE):
        logging.getLogger(WAITING_LOGGER).addFilter(is_no_false_alarm)
