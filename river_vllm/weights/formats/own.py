"""River's own format, which ``river-vllm quantize`` writes. Zero points need not be integers."""

from __future__ import annotations

from typing import Any

import torch

from river_vllm.errors import RiverError
from river_vllm.quantization.groups import GroupedWeight
from river_vllm.weights.formats.bits import expect
from river_vllm.weights.packed import FORMAT, NAMES, from_tensors, to_tensors
from river_vllm.weights.tensors import CheckpointFolder

METHOD = "river"
QUANTIZER = "gptq"


class OwnFormat:
    """A projection's packed tensors under its name."""

    name = QUANTIZER

    def __init__(self, config: dict[str, Any]) -> None:
        expect(config, format=(FORMAT,), quantizer=(QUANTIZER,), group_size=(32, 64, 128))
        expect(config, whole_zeros=(True, False))
        self.group_size: int = config["group_size"]
        self.integer_zeros: bool = config["whole_zeros"]

    def read(self, folder: CheckpointFolder, name: str) -> GroupedWeight:
        tensors = {part: folder.get(f"{name}.{part}") for part in NAMES}
        try:
            return from_tensors(tensors, name)
        except RiverError as error:
            raise RiverError(f"{folder.place(f'{name}.codes')}: {error}") from None


def own_tensors(name: str, weight: GroupedWeight) -> dict[str, torch.Tensor]:
    """The tensors that ``OwnFormat.read`` reads."""
    return {f"{name}.{part}": tensor for part, tensor in to_tensors(weight, name).items()}


def own_config(group_size: int, integer_zeros: bool) -> dict[str, Any]:
    """The ``quantization_config`` that goes with them."""
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantizer": QUANTIZER,
        "group_size": group_size,
        "whole_zeros": integer_zeros,
    }
