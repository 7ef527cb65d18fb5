"""The forms of 4-bit checkpoints that River reads: compressed-tensors and its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from river_vllm.errors import RiverError
from river_vllm.host import text_of
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights.packed import FORMAT, NAMES, from_tensors, to_tensors

OWN_QUANTIZER = "gptq"


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
            config = json.loads(text_of(path, f"'{path}'"))
        except json.JSONDecodeError as error:
            raise RiverError(f"'{path}' is not JSON: {error}") from None
        if not isinstance(config, dict):
            raise RiverError(f"'{path}': expected an object")
        return config


class WeightFormat(Protocol):
    """Reads projections of one checkpoint."""

    name: str
    """The quantiser, as far as the format tells; ``RiverConfig.quantizer`` may name it."""
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
        return grouped(folder.place(packed), codes, scales, zeros)


def scaled(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values of an 8-bit weight in ``dtype``: codes ``[N, K]``, scales ``[N, K]``, N or one."""
    if scales.shape != codes.shape:
        scales = scales.view(-1, 1)
    return (codes.float() * scales.float()).to(dtype)


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
    "river": OwnFormat,
}
"""By ``quant_method`` in a checkpoint's ``quantization_config``; each raises ``RiverError`` for
settings that it does not read."""


def format_of(folder: CheckpointFolder) -> WeightFormat:
    """The format that a checkpoint's configuration names.

    Raises:
        RiverError: it is not quantised, or not in a way that a river can take.
    """
    config = folder.config.get("quantization_config")
    if not isinstance(config, dict):
        raise RiverError(f"'{folder.folder}' is not a quantised checkpoint")
    method = config.get("quant_method")
    if method not in FORMATS:
        raise RiverError(
            f"'{folder.folder}': quant_method = {method!r} (allowed: 'compressed-tensors', which "
            "llm-compressor writes, and 'river', which 'river-vllm quantize' writes)"
        )
    try:
        return FORMATS[method](config)
    except RiverError as error:
        raise RiverError(f"'{folder.folder}': {error}") from None


def unpack(packed: torch.Tensor, dim: int) -> torch.Tensor:
    """Unpack int32 words to uint8 values of 0…15; ``dim`` becomes eight times as long."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
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
    place: str, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> GroupedWeight:
    """A ``GroupedWeight`` in the types that kernels expect.

    Args:
        place: of the weight, for errors.
        codes: ``[N, K]``.
        scales, zeros: ``[N, K / group]``.

    Raises:
        RiverError: the shapes do not go together, or a number is not finite.
    """
    rows, features = codes.shape
    for what, tensor in (("scales", scales), ("zero points", zeros)):
        if tensor.dim() != 2 or tensor.shape[0] != rows or features % max(tensor.shape[1], 1):
            raise RiverError(
                f"{place}: {what} of shape {tuple(tensor.shape)} for a weight {rows} x {features}"
            )
    if scales.shape != zeros.shape:
        raise RiverError(f"{place}: as many zero points as scales are expected")
    if not (scales.isfinite().all() and zeros.isfinite().all()):
        raise RiverError(f"{place}: a scale or a zero point is not a finite number")
    return GroupedWeight(
        codes.contiguous(), scales.bfloat16().float().contiguous(), zeros.float().contiguous()
    )
