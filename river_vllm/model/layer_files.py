"""A decoder layer's tensors, read from the checkpoint again."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from river_vllm.compat import DefaultModelLoader, VllmConfig, get_model_loader
from river_vllm.errors import RiverError

_LAYER = re.compile(r"^(?:model\.|language_model\.)*layers\.(\d+)\.")
"""A layer of the language model. An image encoder (``vision_tower.transformer.layers.0.…``) has
layers of its own, which nothing evicts."""


class CheckpointLayers:
    """Finds the tensors of each decoder layer in a safetensors checkpoint.

    Args:
        files: the checkpoint's files; only their headers are read.
        num_layers: decoder layers of the model.

    Raises:
        RiverError: a file is not safetensors, or a layer has no tensor.
    """

    def __init__(self, files: Sequence[str], num_layers: int) -> None:
        self._names: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for file in files:
            if not file.endswith(".safetensors"):
                raise RiverError(
                    f"'deep' = 'fetch' reads layers from safetensors files, not from "
                    f"'{Path(file).name}'"
                )
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    if found := _LAYER.search(name):
                        self._names[int(found[1])][file].append(name)
        missing = [layer for layer in range(num_layers) if layer not in self._names]
        if missing:
            raise RiverError(
                f"'deep' = 'fetch': the checkpoint has no tensors named 'layers.{missing[0]}.…'"
            )

    def tensors(self, layer: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of each tensor of ``layer``, mapped from the file while iterating."""
        for file, names in self._names[layer].items():
            with safe_open(file, framework="pt") as opened:
                for name in names:
                    yield name, opened.get_tensor(name)


def checkpoint_files(vllm_config: VllmConfig) -> list[str]:
    """The files from which vLLM loads the model's weights.

    Raises:
        TypeError: its loader does not read files.
    """
    loader = get_model_loader(vllm_config.load_config)
    if not isinstance(loader, DefaultModelLoader):
        raise TypeError(f"{type(loader).__name__} does not read checkpoint files")
    model = vllm_config.model_config
    _, files, _, _ = loader._prepare_weights(model.model, None, model.revision, False, None)
    return list(files)
