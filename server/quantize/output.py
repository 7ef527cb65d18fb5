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
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from river_vllm.errors import RiverError

UNFINISHED = ".unfinished"
REPLACED = ".replaced"
"""Suffixes of the hidden folders: unfinished weights, and older ones during their replacement."""
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of ``flock`` on a file system without locks."""


class WeightsFolder(AbstractContextManager["WeightsFolder"]):
    """A folder of weights, written in a hidden folder beside its place and moved by ``finish``.

    Hidden folders of killed runs are removed first. A live run holds a lock on its hidden folder;
    the system releases the lock when the process ends.

    Args:
        places: possible places; the first writable one is taken.

    Raises:
        RiverError: no place is writable, or it holds something else.
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
        """Write the config, and move the folder to its place; older weights are replaced.

        Args:
            model: folder of the backbone.
            settings: ``group_size`` and ``integer_zeros``.
            record: prompts and tokens of the calibration text; ``calibrate`` reads it.
        """
        from river_vllm.weights.formats import own_config

        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = {**own_config(**settings), "made_with": record}
        text = json.dumps(config, indent=1)
        # Written last: a folder without it is no checkpoint.
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

    def __exit__(self, *_: object) -> None:
        self.close()


def _begin(place: Path) -> tuple[Path, int]:
    """A new unfinished folder, and a file descriptor with its lock, where locks exist."""
    while True:
        folder = place.with_name(f".{place.name}.{uuid.uuid4().hex}{UNFINISHED}")
        folder.mkdir()
        # Another run may remove the folder before it is locked.
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
    """Remove hidden folders of killed runs. Older weights return to their place if the run died
    before it moved the new ones in."""
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
    """Yields whether certainly no process writes to an unfinished folder until the block ends."""
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
    """Whether ``folder`` is empty or holds weights of this command."""
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return bool(config["quantization_config"]["quant_method"] == "river")
    except (OSError, ValueError, KeyError, TypeError):
        return False
