"""Write a quantised copy of a checkpoint that stock vLLM loads, as llm-compressor writes it.

    python experiments/make_quantized.py MODEL OUT --form w4a16 [--group-size 64] [--quantizer hqq]
    python experiments/make_quantized.py MODEL OUT --form w8a8

The decoder layers' projections become 4-bit weights by a quantiser of River's, with integer zero
points, or 8-bit weights with a scale for each output, and activations that are rounded to 8 bits
token by token. Embeddings, norms and the LM head stay as they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from river_vllm.kernels.others import pack_int4_into_int32
from river_vllm.weights.quantizers import QUANTIZERS, fitting_group_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--form", required=True, choices=("w4a16", "w8a8"))
    parser.add_argument("--group-size", type=int, default=128, choices=(32, 64, 128))
    parser.add_argument("--quantizer", default="hqq", choices=sorted(QUANTIZERS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    weights = load_file(args.model / "model.safetensors")
    names = [n for n in weights if ".layers." in n and n.endswith("_proj.weight")]
    if args.form == "w8a8":
        for name in names:
            weights |= w8a8(name, weights.pop(name))
        quantization = w8a8_config()
    else:
        # vLLM takes one group size for all layers: the largest that divides every width.
        group = min(fitting_group_size(weights[n].shape[1], args.group_size) for n in names)
        for name in names:
            weights |= w4a16(name, weights.pop(name), group, args.quantizer)
        quantization = w4a16_config(group)
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    for file in args.model.iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model") and file.name != "config.json":
            shutil.copy(file, args.out / file.name)
    config = json.loads((args.model / "config.json").read_text())
    config["quantization_config"] = quantization
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    print(f"{len(names)} projections -> {args.out}")


def w4a16(name: str, weight: torch.Tensor, group: int, quantizer: str) -> dict[str, torch.Tensor]:
    """The four tensors that compressed-tensors keeps for one projection."""
    made = QUANTIZERS[quantizer](weight, group, integer_zeros=True)
    return {
        f"{name}_packed": pack_int4_into_int32(made.codes.int(), 1).contiguous(),
        f"{name}_scale": made.scales.to(weight.dtype),
        f"{name}_zero_point": pack_int4_into_int32(made.zeros.int(), 0).contiguous(),
        f"{name}_shape": torch.tensor(weight.shape),
    }


def w8a8(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The two tensors that compressed-tensors keeps for one projection."""
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127
    codes = (weight.float() / scale).round().clamp(-128, 127).to(torch.int8)
    return {name: codes, f"{name}_scale": scale.to(weight.dtype)}


def w4a16_config(group: int) -> dict[str, object]:
    weights = {
        **{"num_bits": 4, "type": "int", "symmetric": False, "dynamic": False},
        **{"strategy": "group", "group_size": group},
    }
    return _config("pack-quantized", weights, None)


def w8a8_config() -> dict[str, object]:
    shared = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None}
    weights = {**shared, "strategy": "channel", "dynamic": False}
    return _config("int-quantized", weights, {**shared, "strategy": "token", "dynamic": True})


def _config(form: str, weights: object, activations: object) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {**group, "output_activations": None}},
    }


if __name__ == "__main__":
    main()
