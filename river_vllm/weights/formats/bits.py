"""What the formats share: unpacking int32 words of eight 4-bit values, and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from river_vllm.errors import RiverError
from river_vllm.quantization.groups import GroupedWeight
from river_vllm.weights.tensors import CheckpointFolder

IN_ORDER = tuple(range(8))


def unpack(packed: torch.Tensor, dim: int, order: Sequence[int] = IN_ORDER) -> torch.Tensor:
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
        RiverError: the shapes do not go together.
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
