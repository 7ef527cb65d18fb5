"""The border to vLLM, where River computes something itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from river_vllm.compat import checkpoint_architecture, pack_int4_into_int32


@pytest.mark.parametrize("dim", [0, 1])
def test_eight_codes_per_word_low_bits_first(dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (16, 24), generator=generator, dtype=torch.int32)
    packed = pack_int4_into_int32(codes, dim)
    assert packed.dtype == torch.int32
    assert packed.shape == ((2, 24) if dim == 0 else (16, 3))
    words = packed if dim == 1 else packed.t()
    source = codes if dim == 1 else codes.t()
    for line, word_line in zip(source.tolist(), words.tolist(), strict=True):
        for index, word in enumerate(word_line):
            unsigned = word & 0xFFFFFFFF
            nibbles = [(unsigned >> (4 * bit)) & 15 for bit in range(8)]
            assert nibbles == line[8 * index : 8 * index + 8]


def test_the_architecture_is_the_checkpoints_first(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM", "Other"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checkpoint_architecture(str(tmp_path), {}) == "LlamaForCausalLM"
    assert checkpoint_architecture(str(tmp_path), {"config_format": None}) == "LlamaForCausalLM"
