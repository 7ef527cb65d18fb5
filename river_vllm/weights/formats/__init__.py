"""The formats of 4-bit checkpoints that River reads: other tools' and its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from river_vllm.errors import RiverError
from river_vllm.quantization.groups import GroupedWeight
from river_vllm.weights.formats.awq import AwqFormat
from river_vllm.weights.formats.compressed_tensors import CompressedTensorsFormat
from river_vllm.weights.formats.gptq import GptqFormat
from river_vllm.weights.formats.own import OwnFormat
from river_vllm.weights.tensors import CheckpointFolder


class WeightFormat(Protocol):
    """Reads projections of one checkpoint."""

    name: str
    """What made the weights, as far as the format tells; ``RiverConfig.quantizer`` may name it."""
    group_size: int
    """Input features that share a scale; −1 for all of them."""
    integer_zeros: bool
    """Whether every zero point is an integer."""

    def read(self, folder: CheckpointFolder, name: str) -> GroupedWeight:
        """The projection ``name`` (as a bf16 checkpoint names it, without ``.weight``)."""


FORMATS: dict[str, Callable[[dict[str, Any]], WeightFormat]] = {
    "compressed-tensors": CompressedTensorsFormat,
    "awq": AwqFormat,
    "gptq": GptqFormat,
    "river": OwnFormat,
}
"""By ``quant_method`` in a checkpoint's ``quantization_config``; each raises ``RiverError`` for
settings that it does not read."""


def format_of(folder: CheckpointFolder) -> WeightFormat:
    """The format that a checkpoint says it has.

    Raises:
        RiverError: it is not quantised, or not in a way that a river can take.
    """
    config = folder.config.get("quantization_config")
    if not isinstance(config, dict):
        raise RiverError(f"'{folder.folder}' is not a quantised checkpoint")
    method = config.get("quant_method")
    if method not in FORMATS:
        raise RiverError(
            f"'{folder.folder}': quant_method = {method!r} (allowed: {', '.join(FORMATS)})"
        )
    try:
        return FORMATS[method](config)
    except RiverError as error:
        raise RiverError(f"'{folder.folder}': {error}") from None
