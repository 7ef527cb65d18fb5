"""Write a quantised copy of a checkpoint that stock vLLM loads, as llm-compressor writes it.

    python experiments/make_quantized.py MODEL OUT --form w4a16 [--group-size 64] [--quantizer hqq]
    python experiments/make_quantized.py MODEL OUT --form w4a16 --symmetric
    python experiments/make_quantized.py MODEL OUT --form awq | gptq | w8a8 | w8a8-static
    python experiments/make_quantized.py MODEL OUT --form fp8 | fp8-block

The decoder layers' projections become 4-bit weights by a quantiser of River's, with integer zero
points, or (``--symmetric``, and always for ``gptq``) by rounding with a zero point of 8. In the
8-bit forms each output has a scale, and each token's activations have one; ``w8a8-static`` has one
for a whole weight and one, 0.05, for its activations, which only tests can use. ``fp8-block`` has
one for each block of 128 by 128. Embeddings, norms and the LM head stay as they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from math import gcd
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from river_vllm.kernels.groups import GroupedWeight
from river_vllm.kernels.others import pack_int4_into_int32
from river_vllm.weights.quantizers import QUANTIZERS, fitting_group_size

Tensors = dict[str, torch.Tensor]
FORMS = ("w4a16", "awq", "gptq", "w8a8", "w8a8-static", "fp8", "fp8-block")
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""Which of eight neighbouring outputs AWQ keeps in each nibble of a word."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--form", required=True, choices=FORMS)
    parser.add_argument("--group-size", type=int, default=128, choices=(-1, 32, 64, 128))
    parser.add_argument("--quantizer", default="hqq", choices=sorted(QUANTIZERS))
    parser.add_argument("--symmetric", action="store_true")
    args = parser.parse_args()
    options = {"group_size": args.group_size, "quantizer": args.quantizer}
    count = write_copy(args.model, args.out, args.form, symmetric=args.symmetric, **options)
    print(f"{count} projections -> {args.out}")


def write_copy(
    model: Path,
    out: Path,
    form: str,
    group_size: int = 128,
    quantizer: str = "rtn",
    symmetric: bool = False,
) -> int:
    """Write the copy; returns how many projections it has.

    Args:
        group_size: the largest wanted; −1: one group for all inputs.
    """
    out.mkdir(parents=True, exist_ok=True)
    tensors: Tensors = load_file(model / "model.safetensors")
    names = [n for n in tensors if ".layers." in n and n.endswith("_proj.weight")]
    if form.startswith("w8a8"):
        static = form == "w8a8-static"
        for name in names:
            tensors |= w8a8(name, tensors.pop(name), static)
        quantization = w8a8_config(static)
    elif form.startswith("fp8"):
        # Where a projection has fewer outputs, as in tests, a block has fewer rows.
        rows = gcd(128, *(len(tensors[name]) for name in names))
        block = (1, None) if form == "fp8" else (rows, 128)
        for name in names:
            tensors |= fp8(name, tensors.pop(name), block)
        quantization = fp8_config() if form == "fp8" else fp8_block_config(rows)
    else:
        symmetric = symmetric or form == "gptq"
        group = group_size
        if group != -1:  # one for all layers, in every form
            group = min(fitting_group_size(tensors[n].shape[1], group) for n in names)
        for name in names:
            weight = tensors.pop(name)
            size = weight.shape[1] if group == -1 else group
            made = in_groups(weight, size, quantizer, symmetric)
            tensors |= LAYOUTS[form](name.removesuffix(".weight"), made, symmetric)
        quantization = CONFIGS[form](group, symmetric)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for file in model.iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model") and file.name != "config.json":
            shutil.copy(file, out / file.name)
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = quantization
    (out / "config.json").write_text(json.dumps(config, indent=1))
    return len(names)


def in_groups(weight: torch.Tensor, group: int, quantizer: str, symmetric: bool) -> GroupedWeight:
    """A weight ``[N, K]`` in 4-bit groups with integer zero points."""
    if not symmetric:
        return QUANTIZERS[quantizer](weight, group, integer_zeros=True)
    parts = weight.float().unflatten(1, (-1, group))
    scales = (parts.abs().amax(dim=-1) / 7).clamp(min=1e-8).bfloat16().float()
    codes = (parts / scales.unsqueeze(-1)).round().clamp(-8, 7).flatten(1) + 8
    return GroupedWeight(codes.to(torch.uint8), scales, torch.full_like(scales, 8.0))


def w4a16(name: str, made: GroupedWeight, symmetric: bool) -> Tensors:
    """The tensors that compressed-tensors keeps for one projection."""
    tensors = {
        f"{name}.weight_packed": pack_int4_into_int32(made.codes.int(), 1).contiguous(),
        f"{name}.weight_scale": made.scales.bfloat16(),
        f"{name}.weight_shape": torch.tensor(made.codes.shape),
    }
    if not symmetric:
        zeros = pack_int4_into_int32(made.zeros.int(), 0).contiguous()
        tensors[f"{name}.weight_zero_point"] = zeros
    return tensors


def awq(name: str, made: GroupedWeight, _: bool) -> Tensors:
    """The tensors that AutoAWQ keeps for one projection."""

    def packed(values: torch.Tensor) -> torch.Tensor:
        ordered = values.t().int().unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1)
        return pack_int4_into_int32(ordered, 1).contiguous()

    return {
        f"{name}.qweight": packed(made.codes),
        f"{name}.qzeros": packed(made.zeros),
        f"{name}.scales": made.scales.t().half().contiguous(),
    }


def gptq(name: str, made: GroupedWeight, _: bool) -> Tensors:
    """The tensors that GPTQ's libraries keep for one projection; zero points are stored less 1."""
    features = torch.arange(made.codes.shape[1], dtype=torch.int32)
    return {
        f"{name}.qweight": pack_int4_into_int32(made.codes.t().int(), 0).contiguous(),
        f"{name}.qzeros": pack_int4_into_int32(made.zeros.t().int() - 1, 1).contiguous(),
        f"{name}.scales": made.scales.t().half().contiguous(),
        f"{name}.g_idx": features // made.group_size,
    }


def w8a8(name: str, weight: torch.Tensor, static: bool) -> Tensors:
    """The tensors that compressed-tensors keeps for one projection in 8 bits."""
    largest = weight.float().abs()
    largest = largest.amax() if static else largest.amax(dim=1, keepdim=True)
    scale = (largest.clamp(min=1e-8) / 127).to(weight.dtype)
    codes = (weight.float() / scale.float()).round().clamp(-128, 127).to(torch.int8)
    tensors = {name: codes, f"{name}_scale": scale.reshape(1) if static else scale}
    if static:
        tensors[f"{name.removesuffix('weight')}input_scale"] = torch.tensor([0.05])
    return tensors


def fp8(name: str, weight: torch.Tensor, block: tuple[int, int | None]) -> Tensors:
    """The tensors of one projection in FP8; ``block``: outputs and inputs of a scale, None: all."""
    (n, k), most = weight.shape, torch.finfo(torch.float8_e4m3fn).max
    rows, columns = block[0], block[1] or k
    whole = weight.new_zeros(-(-n // rows) * rows, -(-k // columns) * columns, dtype=torch.float)
    whole[:n, :k] = weight
    blocks = whole.view(len(whole) // rows, rows, -1, columns)
    scale = blocks.abs().amax(dim=(1, 3)).clamp(min=1e-8) / most
    codes = (blocks / scale[:, None, :, None]).view(whole.shape)[:n, :k].to(torch.float8_e4m3fn)
    return {name: codes.contiguous(), f"{name}_scale{'_inv' if block[1] else ''}": scale}


def w4a16_config(group: int, symmetric: bool) -> dict[str, Any]:
    weights = {
        **{"num_bits": 4, "type": "int", "symmetric": symmetric, "dynamic": False},
        "strategy": "channel" if group == -1 else "group",
        "group_size": None if group == -1 else group,
    }
    return _compressed_tensors("pack-quantized", weights, None)


def w8a8_config(static: bool) -> dict[str, Any]:
    shared = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None}
    kinds = ("tensor", "tensor") if static else ("channel", "token")
    weights = {**shared, "strategy": kinds[0], "dynamic": False}
    activations = {**shared, "strategy": kinds[1], "dynamic": not static}
    return _compressed_tensors("int-quantized", weights, activations)


def fp8_config() -> dict[str, Any]:
    """As llm-compressor's ``FP8_DYNAMIC``."""
    shared = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None}
    weights = {**shared, "strategy": "channel", "dynamic": False}
    activations = {**shared, "strategy": "token", "dynamic": True}
    return _compressed_tensors("float-quantized", weights, activations)


def fp8_block_config(rows: int) -> dict[str, Any]:
    """As of DeepSeek's and Qwen's checkpoints."""
    shared = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
    return {**shared, "weight_block_size": [rows, 128]}


def awq_config(group: int, _: bool) -> dict[str, Any]:
    shared = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    return {**shared, "version": "gemm", "modules_to_not_convert": ["lm_head"]}


def gptq_config(group: int, _: bool) -> dict[str, Any]:
    shared = {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False}
    return {**shared, "sym": True, "checkpoint_format": "gptq"}


LAYOUTS = {"w4a16": w4a16, "awq": awq, "gptq": gptq}
CONFIGS = {"w4a16": w4a16_config, "awq": awq_config, "gptq": gptq_config}


def _compressed_tensors(form: str, weights: object, activations: object) -> dict[str, Any]:
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
