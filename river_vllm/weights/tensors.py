"""The tensors of a checkpoint folder by name, each read from its safetensors file on demand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from river_vllm.errors import RiverError


class CheckpointFolder:
    """``config.json`` and every ``*.safetensors`` beside it.

    Raises:
        RiverError: the folder, its configuration or one of its files cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = self._config()
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    self._files.update(dict.fromkeys(file.keys(), path))
            except (OSError, SafetensorError) as error:
                raise RiverError(f"'{path}' is not a whole safetensors file: {error}") from None
        if not self._files:
            raise RiverError(f"'{folder}' holds no safetensors files")

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def get(self, name: str) -> torch.Tensor:
        """One tensor.

        Raises:
            RiverError: there is none of this name, or its file cannot be read.
        """
        if name not in self._files:
            raise RiverError(f"'{self.folder}' has no tensor '{name}'")
        path = self._files[name]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise RiverError(f"tensor '{name}' in '{path}': {error}") from None
        return tensor

    def place(self, name: str) -> str:
        """Tensor and file, for error messages."""
        return f"tensor '{name}' in '{self._files.get(name, self.folder)}'"

    def _config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RiverError(f"'{path}': {error.strerror or error}") from None
        except ValueError as error:
            raise RiverError(f"'{path}' is not JSON: {error}") from None
        if not isinstance(config, dict):
            raise RiverError(f"'{path}': expected an object")
        return config
