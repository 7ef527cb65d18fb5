"""River's cache folder, and safe writing to folders."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path

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
