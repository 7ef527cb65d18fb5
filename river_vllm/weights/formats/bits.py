"""Eight 4-bit values in an int32, and what every format checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from river_vllm.errors import RiverError
from river_vllm.quantization.groups import GroupedWeight
from river_vllm.weights.tensors import CheckpointFolder

IN_ORDER = tuple(range(8))


def unpack(packed: torch.Tensor, dim: int, order: Sequence[int] = IN_ORDER) -> torch.Tensor:
    """int32 → uint8 0…15, eight times as long in ``dim``, low bits first.

    Args:
        order: which of eight neighbours each nibble holds, from the lowest.
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


def in_place_order(folder: CheckpointFolder, name: str, group_size: int) -> None:
    """A group must be neighbours: kernels find a feature's group by its place.

    Raises:
        RiverError: ``name`` assigns features to groups in another order.
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
    """Checked and in the types that kernels expect; ``name`` is for errors.

    Args:
        codes: ``[N, K]``. scales, zeros: ``[N, K / group]``.
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
    return GroupedWeight(
        codes.contiguous(), scales.bfloat16().float().contiguous(), zeros.float().contiguous()
    )
