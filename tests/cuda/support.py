"""A machine with a GPU, pretended: its platform, and vLLM's operators for it in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.model_executor.layers.quantization.utils import marlin_utils
from vllm.model_executor.layers.quantization.utils.marlin_utils_test import (
    get_weight_perm,
    marlin_weights,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_cols
from vllm.platforms import current_platform
from vllm.platforms.interface import DeviceCapability, PlatformEnum

from river_vllm.kernels import others


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: int) -> None:
    """vLLM takes this machine for one with an NVIDIA GPU, such as 90 for an H100."""
    found = DeviceCapability(*divmod(capability, 10))
    for name, value in {
        "_enum": PlatformEnum.CUDA,
        "is_cpu": lambda: False,
        "is_cuda": lambda: True,
        "is_cuda_alike": lambda: True,
        "get_device_capability": lambda *_: found,
        "is_device_capability": lambda wanted, *_: wanted in (capability, tuple(found)),
        "has_device_capability": lambda least, *_: found.to_int() >= least,
    }.items():
        monkeypatch.setattr(current_platform, name, value, raising=False)
    # The tensors are a CPU's, whose own product does not matter here.
    monkeypatch.setattr(others, "has_cpu_int4_product", lambda: True)
    monkeypatch.setattr(marlin_utils, "get_marlin_workspace", lambda device: torch.zeros(1))
    for operator in (gptq_marlin_repack, marlin_gemm, machete_prepack_B, machete_mm):
        monkeypatch.setattr(torch.ops._C, operator.__name__, operator, raising=False)


def _rows(packed: torch.Tensor) -> torch.Tensor:
    """int32 ``[K / 8, N]`` → codes ``[K, N]``, low bits first."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32).view(1, -1, 1)
    return ((packed.unsqueeze(1) >> shifts) & 15).flatten(0, 1)


def gptq_marlin_repack(
    weight: torch.Tensor, size_k: int, size_n: int, num_bits: int, is_a_8bit: bool
) -> torch.Tensor:
    """GPTQ's layout → Marlin's, by vLLM's own reference."""
    assert (size_n % 64, size_k % 128) == (0, 0) or (size_n % 128, size_k % 64) == (0, 0)
    return marlin_weights(_rows(weight), size_k, size_n, num_bits, get_weight_perm(num_bits))


def marlin_gemm(
    a: torch.Tensor,
    c: Any,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scales: torch.Tensor,
    a_scales: Any,
    global_scale: Any,
    zeros: torch.Tensor,
    workspace: Any,
    type_id: int,
    size_m: int,
    size_n: int,
    size_k: int,
    *_: Any,
) -> torch.Tensor:
    """Marlin's product: every operand in Marlin's order, the bias too."""
    many, single = map(torch.tensor, marlin_utils.get_scale_perms())
    perm = get_weight_perm(4)
    codes = unpack_cols(weight, 4, size_k // 16, size_n * 16)
    tiles = codes.view(-1, len(perm))[:, perm.argsort()].view(size_k // 16, size_n // 16, 16, 16)
    codes = tiles.transpose(1, 2).reshape(size_k, size_n)
    order = many if len(scales) > 1 else single
    scales = scales.reshape(-1, len(order))[:, order.argsort()].view(-1, size_n)
    interleave = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    points = unpack_cols(zeros, 4, len(scales), size_n).view(-1, 8)[:, interleave.argsort()]
    points = points.reshape(-1, len(many))[:, many.argsort()].view(-1, size_n)
    out = a.float() @ _dequantized(codes, scales, -points * scales.float())
    if bias is not None:
        out += bias.view(-1, len(single))[:, single.argsort()].flatten()
    return out.to(a.dtype)


def machete_prepack_B(weight: torch.Tensor, *_: Any) -> torch.Tensor:
    """The layout stays; Machete wants columns that lie in one piece."""
    assert weight.stride(0) == 1
    return weight


def machete_mm(
    a: torch.Tensor,
    weight: torch.Tensor,
    type_id: int,
    out_type: Any,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    *_: Any,
) -> torch.Tensor:
    """Machete's product: ``zeros`` are added, and already times their scales."""
    return (a.float() @ _dequantized(_rows(weight), scales, zeros)).to(a.dtype)


def _dequantized(codes: torch.Tensor, scales: torch.Tensor, offsets: Any) -> torch.Tensor:
    times = len(codes) // len(scales)
    return codes * scales.float().repeat_interleave(times, 0) + offsets.float().repeat_interleave(
        times, 0
    )
