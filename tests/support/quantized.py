"""4-bit checkpoints in the form of compressed-tensors, packed the way its code does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

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


def make_int8(model: Path, out: Path, static: bool = False) -> Path:
    """A W8A8 copy of a checkpoint, as llm-compressor writes it.

    Args:
        static: one scale for a whole weight and for its activations, in place of one for each
            output and each token.
    """
    tensors = load_file(model / "model.safetensors")
    for name in [n for n in tensors if ".layers." in n and n.endswith("_proj.weight")]:
        weight = tensors[name].float()
        largest = weight.abs().amax() if static else weight.abs().amax(dim=1, keepdim=True)
        scale = (largest / 127).to(torch.bfloat16)
        codes = (weight / scale.float()).round().clamp(-128, 127)
        tensors |= {name: codes.to(torch.int8), f"{name}_scale": scale.reshape(-1, 1)}
        if static:
            tensors[f"{name}_scale"] = scale.reshape(1)
            tensors[f"{name.removesuffix('weight')}input_scale"] = torch.tensor([0.05])
    shared = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}
    kinds = ("tensor", "tensor") if static else ("channel", "token")
    group = {
        "targets": ["Linear"],
        "weights": {**shared, "strategy": kinds[0]},
        "input_activations": {**shared, "strategy": kinds[1], "dynamic": not static},
        "output_activations": None,
    }
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    return write(out, tensors, json.loads((model / "config.json").read_text()), quantization)
