"""Weights, inputs and the plain product for kernel tests."""

from __future__ import annotations

import ctypes

import pytest
import torch

from river_vllm.kernels.base import LinearSpec, PackedLinear
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.kernels.native.kernel import Backend
from river_vllm.kernels.native.library import Unavailable, backends

TOLERANCE = 2**-7
"""Relative error of a row: bfloat16 keeps 8 bits of outputs, scales and offsets (2^-9 each at
most); a group or row taken wrongly shows as tens of per cent."""


def spec_of(k: int, n: int, group: int, dtype: torch.dtype = torch.bfloat16) -> LinearSpec:
    return LinearSpec(k, n, group, dtype, torch.device("cpu"))


def grouped_weight(spec: LinearSpec, integer: bool, seed: int = 0) -> GroupedWeight:
    """Random codes; scales and zeros that differ widely from group to group."""
    generator = torch.Generator().manual_seed(seed)
    shape = (spec.out_features, spec.in_features // spec.group_size)
    codes = torch.randint(
        0, 16, (spec.out_features, spec.in_features), generator=generator, dtype=torch.uint8
    )
    scales = (torch.rand(shape, generator=generator) * 0.2 + 0.01).bfloat16().float()
    zeros = torch.rand(shape, generator=generator) * 15
    return GroupedWeight(codes, scales, zeros.round() if integer else zeros)


def inputs(rows: int, spec: LinearSpec) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, spec.in_features, generator=generator).to(spec.dtype)


def assert_product(
    packed: PackedLinear,
    weight: GroupedWeight,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    reference: torch.Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """``packed`` agrees with the float32 product of the dequantised weight, row by row.

    Args:
        reference: what the kernel makes of ``x`` before it multiplies.
    """
    out = packed.apply(x, bias)
    expected = (x if reference is None else reference).float() @ weight.dequantize().t()
    if bias is not None:
        expected = expected + bias.float()
    assert out.dtype == x.dtype
    assert out.shape == expected.shape
    error = (out.float() - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.max()) < tolerance


def running_backends() -> list[Backend]:
    """The back ends that this machine runs, best first; none where the library is not built."""
    try:
        return backends()
    except Unavailable:
        return []


def backend_id(backend: Backend) -> str:
    """Its name, and its place: two of one name may run."""
    places = [ctypes.addressof(b) for b in running_backends()]
    return f"{places.index(ctypes.addressof(backend))}-{backend.name}"


every_backend = pytest.mark.parametrize(
    "backend",
    running_backends()
    or [pytest.param(None, marks=pytest.mark.skip(reason="the kernel library is not built"))],
    ids=backend_id if running_backends() else None,
)


def scalar_backend() -> Backend:
    """Plain C++, the reference of every other one."""
    return running_backends()[-1]
