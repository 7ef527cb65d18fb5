"""Checkpoints for tests: a real small model, and tiny random ones of other architectures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests.support.parallel import one_at_a_time

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = "smollm2-135m"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, fetched once (``RIVER_TEST_MODELS`` names another folder)."""
    folder = Path(os.environ.get("RIVER_TEST_MODELS", ROOT / "models")) / SMOLLM2
    with one_at_a_time(folder.with_name(f".{SMOLLM2}.lock")):
        if not (folder / "config.json").exists():
            subprocess.run(
                [sys.executable, str(ROOT / "tools" / "get_model.py"), SMOLLM2, str(folder)],
                check=True,
            )
    return folder


def cut(model: Path, folder: Path, layers: int) -> Path:
    """The first ``layers`` decoder layers of a checkpoint: real weights, soon compiled."""
    from safetensors.torch import load_file, save_file

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    kept = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        place = re.search(r"\.layers\.(\d+)\.", name)
        if place is None or int(place[1]) < layers:
            kept[name] = tensor
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    _copy_tokenizer(model, folder)
    return folder


def tiny_qwen2(folder: Path, seed: int = 0, intermediate_size: int = 256) -> Path:
    """A random Qwen2 of six layers with biases and grouped heads, and SmolLM2's tokenizer.

    Weights are wide enough (std 0.08) that a random model's tokens differ from one another and
    its residual stream moves from layer to layer.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=49152,
        hidden_size=128,
        intermediate_size=intermediate_size,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.08,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    model.to(torch.bfloat16).save_pretrained(folder)
    _copy_tokenizer(smollm2(), folder)
    return folder


def _copy_tokenizer(model: Path, folder: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (model / file).exists():
            shutil.copy(model / file, folder / file)
