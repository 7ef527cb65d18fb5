"""Messages from an engine's processes to the command of the server: stages and refusals.

vLLM's parent process learns neither the progress of a start nor the reason of a failure. So the
command names two files in the environment. The engine's processes write a line to one at each new
stage. A worker that refuses to start writes its reason to the other.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

from river_vllm.errors import RiverError

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
    path = os.environ.get(STAGES_FILE)
    if path:
        # A failed write must not end a start.
        with suppress(OSError), Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{time.monotonic()} {stage.value}\n")


def marks(path: Path) -> list[tuple[float, Stage]]:
    """Monotonic seconds and stage of every mark so far, without a partial last line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    lines = text[: text.rfind("\n") + 1].split("\n")[:-1]
    pairs = (line.split(" ", 1) for line in lines)
    return [(float(seconds), Stage(name)) for seconds, name in pairs]


@contextmanager
def refusals_left() -> Iterator[None]:
    """In a worker: write the message of a ``RiverError`` to the command's file; raise it again."""
    try:
        yield
    except RiverError as error:
        path = os.environ.get(REFUSAL_FILE)
        if path:
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


WAITING = "No available shared memory broadcast block found"
"""The beginning of vLLM's log line while an engine waits for its worker."""
WAITING_LOGGER = "vllm.distributed.device_communicators.shm_broadcast"


def is_no_false_alarm(record: logging.LogRecord) -> bool:
    """Whether to log a record: not vLLM's on a long wait, while a worker loads and compiles. That
    line speaks of hanging processes, and would be the terminal's last one for minutes."""
    path = os.environ.get(STAGES_FILE)
    if not path or not str(record.msg).startswith(WAITING):
        return True
    found = [stage for _, stage in marks(Path(path))]
    # Without any the file has been cleared away: the server has run for days.
    return not found or Stage.READY in found


def quiet_while_starting() -> None:
    """In a process of a server that River's command has started: no alarm about a normal start."""
    if os.environ.get(STAGES_FILE):
        logging.getLogger(WAITING_LOGGER).addFilter(is_no_false_alarm)
