"""What an engine is doing while it starts, on its way to the terminal of who started the server.

The command that starts a server names a file in the environment; the processes of its engine write
a line into it whenever they come to another stage. Where no file is named, marks go nowhere.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path

from river_vllm.folders import file_named_by

VARIABLE = "RIVER_STARTUP_FILE"


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
    """Say that this stage begins now."""
    path = os.environ.get(VARIABLE)
    if path:
        # A start must not end over what it says about itself.
        with suppress(OSError), Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{time.monotonic()} {stage.value}\n")


def marks(path: Path) -> list[tuple[float, Stage]]:
    """Monotonic seconds and stage of every mark so far; of lines that are whole."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    lines = text[: text.rfind("\n") + 1].split("\n")[:-1]
    pairs = (line.split(" ", 1) for line in lines)
    return [(float(seconds), Stage(name)) for seconds, name in pairs]


@contextmanager
def marks_collected() -> Iterator[Path]:
    """In the command: the file of the marks."""
    with file_named_by(VARIABLE) as file:
        yield file


WAITING = "No available shared memory broadcast block found"
"""How vLLM's record begins by which an engine that waits for its worker is to be seen."""
WAITING_LOGGER = "vllm.distributed.device_communicators.shm_broadcast"


class WhileStarting(logging.Filter):
    """Drops vLLM's record of a long wait while a worker loads and compiles, as it is bound to do.

    It speaks of hanging processes, and is the last line that a newcomer sees for minutes. Once the
    server is ready it passes.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        path = os.environ.get(VARIABLE)
        if not path or not str(record.msg).startswith(WAITING):
            return True
        found = marks(Path(path))
        return bool(found) and found[-1][1] is Stage.READY


def quiet_while_starting() -> None:
    """In a process of a server that River's command has started: no alarm about a normal start."""
    logger = logging.getLogger(WAITING_LOGGER)
    if os.environ.get(VARIABLE) and not any(isinstance(f, WhileStarting) for f in logger.filters):
        logger.addFilter(WhileStarting())
