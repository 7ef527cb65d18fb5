"""A refusal on its way from a worker process to the terminal of who started the server.

vLLM's parent process learns only that an engine did not start, not why. The command that starts a
server names a file in the environment; a worker that refuses leaves its reason there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from river_vllm.errors import RiverError
from river_vllm.folders import file_named_by

VARIABLE = "RIVER_REFUSAL_FILE"


@contextmanager
def refusals_left() -> Iterator[None]:
    """In a worker: what refuses inside the block leaves its reason, and goes on as an error."""
    try:
        yield
    except RiverError as error:
        path = os.environ.get(VARIABLE)
        if path:
            with suppress(OSError):  # the error itself must not be lost over its message
                Path(path).write_text(str(error), encoding="utf-8")
        raise


@contextmanager
def refusals_collected() -> Iterator[Path]:
    """In the command: the file, which is empty unless a worker refuses."""
    with file_named_by(VARIABLE) as file:
        yield file
