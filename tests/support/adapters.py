"""LoRA adapters as peft writes them, with random weights, and engines that use them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

RANK = 8
STRENGTH = 0.5
"""What an adapter adds to an output, relative to what the weight itself gives."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model."


def make_adapter(
    model: Path, folder: Path, seed: int, targets: Collection[str] = PROJECTIONS
) -> Path:
    """A random adapter for these modules of a checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in targets:
            continue
        # An embedding's outputs are its columns.
        embedding = module.endswith("embed_tokens")
        outputs, inputs = weight.t().shape if embedding else weight.shape
        size = float(weight.float().std()) * STRENGTH
        down = torch.randn(RANK, inputs, generator=generator)
        up = torch.randn(outputs, RANK, generator=generator) * size / RANK**0.5
        names = "lora_embedding_A", "lora_embedding_B"
        if not embedding:
            names = "lora_A.weight", "lora_B.weight"
        for part, values in zip(names, (down, up), strict=True):
            tensors[f"{_PREFIX}{module}.{part}"] = values.bfloat16()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": RANK,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def difference(adapter: Path, module: str) -> torch.Tensor | None:
    """What an adapter adds to the weight of a linear ``module``, float32 ``[N, K]``; None for a
    module that it leaves alone."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    parts = [tensors.get(f"{_PREFIX}{module}.lora_{part}.weight") for part in "BA"]
    up, down = parts
    return None if up is None or down is None else up.float() @ down.float()


class Adapted:
    """An engine whose prompts name their adapters: ``prompt["adapter"]``, a ``LoRARequest`` or
    None."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, prompts: Sequence[dict[str, Any]], params: Any, **options: Any) -> Any:
        adapters = [prompt["adapter"] for prompt in prompts]
        plain = [{"prompt_token_ids": prompt["prompt_token_ids"]} for prompt in prompts]
        return self._engine.generate(plain, params, lora_request=adapters, **options)
