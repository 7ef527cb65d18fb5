"""Write a 4-bit copy of a checkpoint that stock vLLM loads (compressed-tensors, pack-quantized).

River's quantiser turns the decoder layers' projections into W4A16, with integer zero points;
embeddings, norms and the LM head stay bf16. The copy is the baseline "fully 4-bit vLLM" of River's
benchmark.

    python experiments/make_w4a16.py MODEL OUT [--group-size 64] [--quantizer hqq]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from river_vllm.kernels.vllm_mp import pack_int4_into_int32
from river_vllm.weights.quantizers import QUANTIZERS, fitting_group_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--group-size", type=int, default=128, choices=(32, 64, 128))
    parser.add_argument("--quantizer", default="hqq", choices=sorted(QUANTIZERS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    weights = load_file(args.model / "model.safetensors")
    names = [n for n in weights if ".layers." in n and n.endswith("_proj.weight")]
    # vLLM takes one group size for all layers: the largest that divides every width.
    group = min(fitting_group_size(weights[n].shape[1], args.group_size) for n in names)
    for name in names:
        weights |= quantized(name, weights.pop(name), group, args.quantizer)
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    for file in args.model.iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model") and file.name != "config.json":
            shutil.copy(file, args.out / file.name)
    config = json.loads((args.model / "config.json").read_text())
    config["quantization_config"] = quantization_config(group)
    (args.out / "config.json").write_text(json.dumps(config, indent=1))
    print(f"{len(names)} projections in groups of {group} -> {args.out}")


def quantized(
    name: str, weight: torch.Tensor, group: int, quantizer: str
) -> dict[str, torch.Tensor]:
    """The four tensors that compressed-tensors keeps for one projection."""
    made = QUANTIZERS[quantizer](weight, group, integer_zeros=True)
    return {
        f"{name}_packed": pack_int4_into_int32(made.codes.int(), 1).contiguous(),
        f"{name}_scale": made.scales.to(weight.dtype),
        f"{name}_zero_point": pack_int4_into_int32(made.zeros.int(), 0).contiguous(),
        f"{name}_shape": torch.tensor(weight.shape),
    }


def quantization_config(group: int) -> dict[str, object]:
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": group,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
    }


if __name__ == "__main__":
    main()
