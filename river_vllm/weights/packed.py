"""A 4-bit weight as tensors of a file: two codes a byte, with a checksum over all of it.

The layout is no kernel's, so every kernel can pack a weight that an earlier start has saved.
"""

from __future__ import annotations

from typing import Any

import torch
from blake3 import blake3
from safetensors import SafetensorError
from safetensors.torch import load, save

from river_vllm.errors import RiverError
from river_vllm.kernels.groups import GroupedWeight

FORMAT = 1
"""Raised when the tensors change their meaning."""
NAMES = ("codes", "scales", "zeros", "checksum")


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """uint8 ``[N, K]`` of 0…15 → uint8 ``[N, K / 2]``, the even feature in the low half."""
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def to_tensors(weight: GroupedWeight, key: str) -> dict[str, torch.Tensor]:
    """``weight`` as the tensors ``NAMES``, to be read back with the same ``key``."""
    tensors = {
        "codes": pack_codes(weight.codes).cpu(),
        # Exact: quantisers round scales to the bfloat16 that kernels keep.
        "scales": weight.scales.to("cpu", torch.bfloat16),
        # Copied: the projections of a fused module are views of one tensor, which safetensors
        # refuses to save.
        "zeros": weight.zeros.cpu().clone(),
    }
    return {**tensors, "checksum": _checksum(tensors, key)}


def from_tensors(tensors: dict[str, torch.Tensor], key: str) -> GroupedWeight:
    """The weight that ``to_tensors`` was given, bit for bit.

    Raises:
        RiverError: the tensors are not those that were made for ``key``.
    """
    if set(tensors) != set(NAMES):
        raise RiverError(f"not a packed weight (it holds {', '.join(sorted(tensors))})")
    content = {name: tensor for name, tensor in tensors.items() if name != "checksum"}
    if not torch.equal(tensors["checksum"], _checksum(content, key)):
        raise RiverError("the checksum does not match")
    _check_shapes(**content)
    pairs = tensors["codes"]
    codes = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(1)
    return GroupedWeight(codes, tensors["scales"].float(), tensors["zeros"])


def _check_shapes(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> None:
    """Check the shapes that kernels rely on: a forged file has a right checksum too."""
    kinds = (codes, torch.uint8), (scales, torch.bfloat16), (zeros, torch.float32)
    if any(tensor.dim() != 2 or tensor.dtype != dtype for tensor, dtype in kinds):
        raise RiverError("codes, scales or zero points are of another type")
    (rows, pairs), groups = codes.shape, scales.shape
    if groups != zeros.shape or groups[0] != rows or not groups[1] or 2 * pairs % groups[1]:
        raise RiverError(
            f"scales {tuple(groups)} and zero points {tuple(zeros.shape)} for a weight "
            f"{rows} x {2 * pairs}"
        )


def to_bytes(weight: GroupedWeight, key: str) -> bytes:
    """``weight`` as a safetensors file of its own."""
    return save(to_tensors(weight, key))


def from_bytes(data: bytes, key: str) -> GroupedWeight:
    """The inverse of ``to_bytes``; raises as ``from_tensors``."""
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise RiverError(f"not a packed weight ({error})") from None
    return from_tensors(tensors, key)


def digest(tensor: torch.Tensor) -> str:
    """BLAKE3 of a tensor's type, shape and values."""
    return _hash(tensor).hexdigest()


def _hash(tensor: torch.Tensor) -> Any:
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    hasher.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return hasher


def _checksum(tensors: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    whole = blake3(f"{FORMAT} {key} ".encode())
    for name in sorted(tensors):
        whole.update(name.encode())
        whole.update(_hash(tensors[name]).digest())
    return torch.frombuffer(bytearray(whole.digest()), dtype=torch.uint8)
