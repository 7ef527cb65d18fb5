"""The folders that keep 4-bit weights between starts.

Weights made at load have one file each, named by a hash of the weight's values, the quantiser's
code and its arguments. So a changed checkpoint, setting or tensor-parallel shard finds no file.
Engines can share a folder: two that write the same name write the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from river_vllm.compat import init_logger
from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.host import expanded, user_cache, write_whole
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights.packed import from_bytes, to_bytes
from river_vllm.weights.quantizers import QUANTIZERS

logger = init_logger("vllm.river")

BESIDE = "river"
"""Folder inside a local checkpoint."""


def cache_folders(setting: str, model: str) -> list[Path]:
    """Folders in which to look for weights, and the order in which to try to write to them.

    ``setting`` is ``auto`` (beside a local checkpoint, then the user's cache), ``off`` or a folder;
    ``model`` is the folder or hub id of the checkpoint.
    """
    if setting == "off":
        return []
    if setting != "auto":
        return [expanded(setting)]
    folders = [user_cache()]
    # Path.is_dir raises where a folder on the way may not be entered.
    if os.path.isdir(model):  # noqa: PTH112
        folders.insert(0, Path(model) / BESIDE)
    return folders


def weights_folder(config: RiverConfig, model: str) -> Path | None:
    """The 4-bit checkpoint to read; None where the weights are made at load.

    Raises:
        RiverError: GPTQ's weights have not been made.
    """
    if config.weights is not None:
        return expanded(config.weights)
    if config.quantizer in QUANTIZERS:
        return None
    places = gptq_folders(config, model)
    if (found := first_made(places)) is not None:
        return found
    looked = " or ".join(f"'{place}'" for place in places) or "any cache (it is off)"
    command = f"river-vllm quantize {model} --group-size {config.group_size} --prompts FILE"
    if config.cache_dir == "off":
        cure = f"'{command} --output DIR', and give --river-weights DIR"
    else:
        # The command writes to the first place of "auto".
        cure = f"'{command}{'' if config.cache_dir == 'auto' else f' --output {places[0]}'}'"
    raise RiverError(
        f"no weights of quantizer '{config.quantizer}' in {looked}: make them with {cure}"
    )


def first_made(places: Sequence[Path]) -> Path | None:
    """The first of ``gptq_folders`` that holds weights, which an engine then reads."""
    # Path.is_file raises where a folder on the way may not be entered.
    made = (place for place in places if os.path.isfile(place / "config.json"))  # noqa: PTH113
    return next(made, None)


def gptq_folders(config: RiverConfig, model: str) -> list[Path]:
    """The folders in which GPTQ's weights are searched, and by default written."""
    # All paths to a folder give one name.
    name = str(Path(model).resolve()) if os.path.isdir(model) else model  # noqa: PTH112
    beside, own = Path(model) / BESIDE, name.strip("/").replace("/", "--")
    return [
        (folder if folder == beside else folder / own) / f"gptq-g{config.group_size}"
        for folder in cache_folders(config.cache_dir, model)
    ]


class WeightCache:
    """Packed weights by key. All ``folders`` are read; the first that can be written to is."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)
        self._writable = list(folders)
        self.found_in: Path | None = None
        """The folder of the last weight that was found."""

    @property
    def writes_to(self) -> Path | None:
        """The folder for new weights; None where none can be written to."""
        return self._writable[0] if self._writable else None

    def get(self, key: str) -> GroupedWeight | None:
        """The weight saved for ``key``; None, with a warning, if its file is damaged."""
        for folder in tuple(self._folders):
            path = folder / f"{key}.safetensors"
            try:
                weight = from_bytes(path.read_bytes(), key)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                logger.warning("River: weights in '%s' cannot be read: %s", folder, error)
                self._folders.remove(folder)
                continue
            except (OSError, RiverError) as error:
                logger.warning("River: quantising again, '%s' cannot be used: %s", path, error)
                continue
            self.found_in = folder
            return weight
        return None

    def put(self, key: str, weight: GroupedWeight) -> None:
        """Save ``weight`` in the first folder that can be written to; the others are logged."""
        data = to_bytes(weight, key) if self._writable else b""
        while self._writable:
            try:
                write_whole(self._writable[0] / f"{key}.safetensors", data)
                return
            except OSError as error:
                logger.info("River: cannot save weights in '%s': %s", self._writable[0], error)
                del self._writable[0]
