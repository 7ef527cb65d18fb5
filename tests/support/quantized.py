"""4-bit checkpoints in the form of compressed-tensors, packed the way its code does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from river_vllm.kernels.groups import GroupedWeight

Tensors = dict[str, torch.Tensor]


def pack_columns(values: torch.Tensor) -> torch.Tensor:
    """``[R, C]`` of 0…15 → int32 ``[R, C / 8]``, one nibble after the other."""
    packed = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int64)
    for nibble in range(8):
        packed |= values[:, nibble::8].long() << (4 * nibble)
    # As int32 the top nibble's highest bit is the sign.
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def compressed_tensors(name: str, weight: GroupedWeight) -> Tensors:
    return {
        f"{name}.weight_packed": pack_columns(weight.codes),
        f"{name}.weight_scale": weight.scales.bfloat16(),
        f"{name}.weight_zero_point": pack_columns(weight.zeros.t()).t().contiguous(),
        f"{name}.weight_shape": torch.tensor(weight.codes.shape),
    }


def compressed_tensors_config(group_size: int) -> dict[str, Any]:
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": False,
        "strategy": "channel" if group_size == -1 else "group",
        "group_size": group_size,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def write(out: Path, tensors: Tensors, config: dict[str, Any], quantization: Any) -> Path:
    """Any tensors as a checkpoint folder."""
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return out
