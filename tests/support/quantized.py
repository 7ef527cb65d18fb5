"""4-bit checkpoints in other tools' formats, packed the way those tools' code does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from river_vllm.quantization.groups import GroupedWeight

Tensors = dict[str, torch.Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack_columns(values: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """``[R, C]`` of 0…15 → int32 ``[R, C / 8]``, one nibble after the other."""
    packed = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int64)
    for nibble, column in enumerate(order):
        packed |= values[:, column::8].long() << (4 * nibble)
    # As int32 the top nibble's highest bit is the sign.
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def compressed_tensors(name: str, weight: GroupedWeight) -> Tensors:
    return {
        f"{name}.weight_packed": pack_columns(weight.codes),
        f"{name}.weight_scale": weight.scales.bfloat16(),
        f"{name}.weight_zero_point": pack_columns(weight.zeros.t()).t().contiguous(),
        f"{name}.weight_shape": torch.tensor(weight.codes.shape),
    }


def awq(name: str, weight: GroupedWeight) -> Tensors:
    return {
        f"{name}.qweight": pack_columns(weight.codes.t(), AWQ_ORDER),
        f"{name}.qzeros": pack_columns(weight.zeros.t(), AWQ_ORDER),
        f"{name}.scales": weight.scales.t().half().contiguous(),
    }


def gptq(name: str, weight: GroupedWeight, less: int = 1) -> Tensors:
    features = weight.codes.shape[1]
    return {
        f"{name}.qweight": pack_columns(weight.codes).t().contiguous(),
        f"{name}.qzeros": pack_columns((weight.zeros.t() - less) % 16),
        f"{name}.scales": weight.scales.t().half().contiguous(),
        f"{name}.g_idx": torch.arange(features, dtype=torch.int32) // weight.group_size,
    }


def compressed_tensors_config(group_size: int) -> dict[str, Any]:
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": group_size,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def awq_config(group_size: int) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
    }


def gptq_config(group_size: int) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": group_size, "desc_act": False}


FORMATS: dict[str, tuple[Callable[[str, GroupedWeight], Tensors], Callable[[int], Any]]] = {
    "compressed-tensors": (compressed_tensors, compressed_tensors_config),
    "awq": (awq, awq_config),
    "gptq": (gptq, gptq_config),
}


def write(out: Path, tensors: Tensors, config: dict[str, Any], quantization: Any) -> Path:
    """Any tensors as a checkpoint folder."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return out
