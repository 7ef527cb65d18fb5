"""The folder of quantised weights, which appears once it is complete."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from river_vllm.errors import RiverError

UNFINISHED = ".unfinished"
REPLACED = ".replaced"
"""Suffixes of the hidden folders: what is being written, and older weights while new ones take
their place."""
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of ``flock`` on a file system without locks."""


class WeightsFolder:
    """Written in a hidden folder beside its final place, and moved there by ``finish``.

    What killed runs have left there is removed first. A run that is alive holds a lock on its
    hidden folder, which the system releases when the process ends.

    Args:
        places: the first that can be written to is taken.

    Raises:
        RiverError: none can, or it holds something else.
    """

    def __init__(self, places: Sequence[Path]) -> None:
        reasons = []
        for place in map(Path.resolve, places):
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                _clear(place)
                self.unfinished, self._lock = _begin(place)
            except OSError as error:
                reasons.append(f"'{place}': {error.strerror or error}")
                continue
            self.folder = place
            break
        else:
            raise RiverError(f"--output: {'; '.join(reasons) or 'the cache is off'}")
        if place.exists() and not _is_ours(place):
            self.close()
            raise RiverError(f"--output '{place}': exists and holds something else")

    def finish(self, model: Path, settings: dict[str, Any], record: dict[str, Any]) -> None:
        """Describe what was written, and put it in its place; an older one is replaced.

        Args:
            model: folder of the backbone.
            settings: ``group_size`` and ``integer_zeros``.
            record: prompts and tokens that it was made with, for people.
        """
        from river_vllm.weights.formats import own_config

        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = {**own_config(**settings), "made_with": record}
        text = json.dumps(config, indent=1)
        # Last: a folder without it is no checkpoint.
        (self.unfinished / "config.json").write_text(text, encoding="utf-8")
        if self.folder.exists():
            replaced = self.unfinished.with_suffix(REPLACED)
            self.folder.rename(replaced)
            self.unfinished.rename(self.folder)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            self.unfinished.rename(self.folder)

    def close(self) -> None:
        """Remove the hidden folder, if it has not been moved, and release the lock."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _begin(place: Path) -> tuple[Path, int]:
    """A new unfinished folder, and the file descriptor that holds its lock, if there are any."""
    while True:
        folder = place.with_name(f".{place.name}.{uuid.uuid4().hex}{UNFINISHED}")
        folder.mkdir()
        # Another run may remove it before it is locked.
        with suppress(FileNotFoundError):
            try:
                lock = _locked(folder)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                return folder, os.open(folder, os.O_RDONLY)
            if lock is None:
                continue
            if folder.exists():
                return folder, lock
            os.close(lock)


def _clear(place: Path) -> None:
    """Remove what killed runs have left. Older weights that were moved away when the run died, and
    the new ones not yet moved in, go back to their place."""
    for folder in place.parent.glob(f".{glob.escape(place.name)}.{'[0-9a-f]' * 32}.*"):
        if folder.suffix == REPLACED:
            running = folder.with_suffix(UNFINISHED)
        elif folder.suffix == UNFINISHED:
            running = folder
        else:
            continue
        with _unless_alive(running) as dead:
            if not dead:
                continue
            if folder.suffix == REPLACED and not place.exists():
                folder.rename(place)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _unless_alive(folder: Path) -> Iterator[bool]:
    """Yields whether it is certain that no process writes to an unfinished folder, nor begins to
    before the block ends."""
    try:
        lock = _locked(folder)
    except OSError as error:
        if error.errno not in (errno.ENOENT, *NO_LOCKS):
            raise
        yield error.errno == errno.ENOENT
        return
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A file descriptor that holds the folder's lock; None if another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_ours(folder: Path) -> bool:
    """An empty folder, or weights that this command has made."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return bool(config["quantization_config"]["quant_method"] == "river")
    except (OSError, ValueError, KeyError, TypeError):
        return False
