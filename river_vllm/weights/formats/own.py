"""River's own: what ``river-vllm quantize`` writes. Zero points need not be whole."""

from __future__ import annotations

from typing import Any

import torch

from river_vllm.errors import RiverError
from river_vllm.quantization.groups import GroupedWeight
from river_vllm.weights.formats.bits import expect
from river_vllm.weights.packed import FORMAT, INPUTS, NAMES, from_tensors, to_tensors
from river_vllm.weights.tensors import CheckpointFolder

METHOD = "river"


class OwnFormat:
    """A projection's packed tensors under its name."""

    def __init__(self, config: dict[str, Any]) -> None:
        expect(config, format=(FORMAT,), group_size=(32, 64, 128), whole_zeros=(True, False))
        self.name = str(config.get("quantizer"))
        self.group_size: int = config["group_size"]
        self.whole_zeros: bool = config["whole_zeros"]

    def read(self, folder: CheckpointFolder, name: str) -> GroupedWeight:
        names = (*NAMES, INPUTS) if f"{name}.{INPUTS}" in folder else NAMES
        tensors = {part: folder.get(f"{name}.{part}") for part in names}
        try:
            return from_tensors(tensors, name)
        except RiverError as error:
            raise RiverError(f"{folder.place(f'{name}.codes')}: {error}") from None


def own_tensors(name: str, weight: GroupedWeight) -> dict[str, torch.Tensor]:
    """The tensors that ``OwnFormat.read`` reads."""
    return {f"{name}.{part}": tensor for part, tensor in to_tensors(weight, name).items()}


def own_config(quantizer: str, group_size: int, whole_zeros: bool) -> dict[str, Any]:
    """The ``quantization_config`` that goes with them."""
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantizer": quantizer,
        "group_size": group_size,
        "whole_zeros": whole_zeros,
    }
