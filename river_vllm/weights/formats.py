"""The formats of 4-bit checkpoints that River reads: other tools' and its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from river_vllm.errors import RiverError
from river_vllm.quantization.groups import GroupedWeight
from river_vllm.weights.packed import FORMAT, NAMES, from_tensors, to_tensors
from river_vllm.weights.tensors import CheckpointFolder

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""For each nibble, from the lowest, which of eight neighbouring outputs it holds (AutoAWQ's
``awq/utils/packing_utils.py``)."""
GPTQ_OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""By how much a stored zero point is too small, by version of the format."""
OWN_QUANTIZER = "gptq"


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


class CompressedTensorsFormat:
    """Codes are packed along the inputs, zero points along the outputs; 8 is added to both."""

    name = "compressed-tensors"
    integer_zeros = True

    def __init__(self, config: dict[str, Any]) -> None:
        expect(config, format=("pack-quantized",))
        schemes = list((config.get("config_groups") or {}).values())
        if len(schemes) != 1:
            raise RiverError(f"expected one entry in 'config_groups', found {len(schemes)}")
        weights = schemes[0].get("weights") or {}
        expect(weights, num_bits=(4,), type=("int",), strategy=("group", "channel"))
        self._symmetric = bool(weights.get("symmetric", True))
        self.group_size = -1 if weights["strategy"] == "channel" else int(weights["group_size"])

    def read(self, folder: CheckpointFolder, name: str) -> GroupedWeight:
        packed = f"{name}.weight_packed"
        expect_contiguous_groups(folder, f"{name}.weight_g_idx", self.group_size)
        rows, features = folder.get(f"{name}.weight_shape").tolist()
        # The last word of a row is padded.
        codes = unpack(folder.get(packed), 1)[:, :features]
        scales = folder.get(f"{name}.weight_scale").float()
        if self._symmetric:
            zeros = torch.full_like(scales, 8.0)
        else:
            zeros = unpack(folder.get(f"{name}.weight_zero_point"), 0)[:rows].float()
        return grouped(folder, packed, codes, scales, zeros)


class AwqFormat:
    """Transposed, ``[in, out]``, and packed along the outputs, which AutoAWQ interleaves."""

    name = "awq"
    integer_zeros = True

    def __init__(self, config: dict[str, Any]) -> None:
        bits = "bits" if "bits" in config else "w_bit"
        expect(config, **{bits: (4,)})
        expect(
            {"version": "gemm", "zero_point": True, **config},
            version=("gemm", "GEMM"),
            zero_point=(True,),
        )
        self.group_size = int(config.get("group_size", config.get("q_group_size", 128)))

    def read(self, folder: CheckpointFolder, name: str) -> GroupedWeight:
        packed = f"{name}.qweight"
        codes = unpack(folder.get(packed), 1, AWQ_ORDER).t()
        zeros = unpack(folder.get(f"{name}.qzeros"), 1, AWQ_ORDER).t()
        return grouped(folder, packed, codes, folder.get(f"{name}.scales").t(), zeros)


class GptqFormat:
    """Transposed, ``[in, out]``; codes are packed along the inputs, zero points along the outputs.

    The first version of the format stores each zero point minus one, and so cannot hold a 0.
    """

    name = "gptq"
    integer_zeros = True

    def __init__(self, config: dict[str, Any]) -> None:
        version = config.get("checkpoint_format") or "gptq"
        expect(
            {**config, "checkpoint_format": version},
            bits=(4,),
            checkpoint_format=list(GPTQ_OFFSETS),
        )
        self._offset = GPTQ_OFFSETS[version]
        self.group_size = int(config.get("group_size", -1))

    def read(self, folder: CheckpointFolder, name: str) -> GroupedWeight:
        packed = f"{name}.qweight"
        expect_contiguous_groups(folder, f"{name}.g_idx", self.group_size)
        codes = unpack(folder.get(packed), 0).t()
        zeros = unpack(folder.get(f"{name}.qzeros"), 1).t() + self._offset
        return grouped(folder, packed, codes, folder.get(f"{name}.scales").t(), zeros)


class OwnFormat:
    """A projection's packed tensors under its name."""

    name = OWN_QUANTIZER

    def __init__(self, config: dict[str, Any]) -> None:
        expect(config, format=(FORMAT,), quantizer=(OWN_QUANTIZER,), group_size=(32, 64, 128))
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
        "quant_method": "river",
        "format": FORMAT,
        "quantizer": OWN_QUANTIZER,
        "group_size": group_size,
        "whole_zeros": integer_zeros,
    }


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


def unpack(packed: torch.Tensor, dim: int, order: Sequence[int] = range(8)) -> torch.Tensor:
    """Unpack int32 words to uint8 values of 0…15; ``dim`` becomes eight times as long.

    Args:
        order: for each nibble, from the lowest, which of the eight neighbours it holds.
    """
    shifts = torch.empty(8, dtype=torch.int32)
    shifts[list(order)] = torch.arange(0, 32, 4, dtype=torch.int32)
    values = (packed.unsqueeze(-1) >> shifts) & 15
    if dim == 0:
        values = values.transpose(1, 2)
    return values.to(torch.uint8).flatten(dim, dim + 1)


def expect(config: dict[str, Any], **allowed: Sequence[Any]) -> None:
    """Check settings of a ``quantization_config``.

    Raises:
        RiverError: names the setting, its value and what is allowed.
    """
    for name, values in allowed.items():
        if config.get(name) not in values:
            raise RiverError(
                f"'{name}' = {config.get(name)!r} (allowed: {', '.join(map(repr, values))})"
            )


def expect_contiguous_groups(folder: CheckpointFolder, name: str, group_size: int) -> None:
    """Check that each group consists of neighbouring features, as kernels take it for granted.

    Args:
        name: of the tensor with each feature's group; without it they are in order.

    Raises:
        RiverError: the groups are in another order.
    """
    if name not in folder:
        return
    group_of = folder.get(name).long()
    size = len(group_of) if group_size == -1 else group_size
    if not torch.equal(group_of, torch.arange(len(group_of)) // size):
        raise RiverError(
            f"{folder.place(name)}: groups of features that are not neighbours (act-order) "
            "are not supported"
        )


def grouped(
    folder: CheckpointFolder,
    name: str,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
) -> GroupedWeight:
    """A ``GroupedWeight`` in the types that kernels expect.

    Args:
        name: of the tensor that errors name.
        codes: ``[N, K]``.
        scales, zeros: ``[N, K / group]``.

    Raises:
        RiverError: the shapes do not go together, or a number is not finite.
    """
    rows, features = codes.shape
    for what, tensor in (("scales", scales), ("zero points", zeros)):
        if tensor.dim() != 2 or tensor.shape[0] != rows or features % max(tensor.shape[1], 1):
            raise RiverError(
                f"{folder.place(name)}: {what} of shape {tuple(tensor.shape)} for a weight "
                f"{rows} x {features}"
            )
    if scales.shape != zeros.shape:
        raise RiverError(f"{folder.place(name)}: as many zero points as scales are expected")
    if not (scales.isfinite().all() and zeros.isfinite().all()):
        raise RiverError(f"{folder.place(name)}: a scale or a zero point is not a finite number")
    return GroupedWeight(
        codes.contiguous(), scales.bfloat16().float().contiguous(), zeros.float().contiguous()
    )
