"""tools/get_model.py on a tiny GGUF that is written here: what comes out is a plain bf16 model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tools import get_model

gguf = pytest.importorskip("gguf")

HIDDEN, FEED_FORWARD, VOCABULARY = 64, 128, 260
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def write_gguf(path: Path, *, template: bool = True, tied: bool = True, norm: bool = True) -> None:
    """A one-layer Llama: Q8_0 matrices, float32 norms, a byte-level vocabulary."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_vocab_size(VOCABULARY)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // 2)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", *(f"<{n}>" for n in range(VOCABULARY - 3))])
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if template:
        writer.add_chat_template(TEMPLATE)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns)).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def vector(name: str) -> None:
        writer.add_tensor(name, np.linspace(0.5, 1.5, HIDDEN, dtype=np.float32))

    matrix("token_embd.weight", VOCABULARY, HIDDEN)
    if not tied:
        matrix("output.weight", VOCABULARY, HIDDEN)
    if norm:
        vector("output_norm.weight")
    vector("blk.0.attn_norm.weight")
    vector("blk.0.ffn_norm.weight")
    for name, rows, columns in (
        *(("attn_q", HIDDEN, HIDDEN), ("attn_k", HIDDEN // 2, HIDDEN)),
        *(("attn_v", HIDDEN // 2, HIDDEN), ("attn_output", HIDDEN, HIDDEN)),
        *(("ffn_gate", FEED_FORWARD, HIDDEN), ("ffn_up", FEED_FORWARD, HIDDEN)),
        ("ffn_down", HIDDEN, FEED_FORWARD),
    ):
        matrix(f"blk.0.{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dequantised(path: Path, name: str) -> torch.Tensor:
    """The tensor ``name`` of a GGUF, unpacked by the gguf package itself."""
    (found,) = (tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    return torch.tensor(gguf.quants.dequantize(found.data, found.tensor_type))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_weights_config_and_template(tmp_path: Path, folder: Path, tied: bool) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, tied=tied)
    parameters = get_model.dequantise(path, folder)

    state = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert parameters == sum(tensor.numel() for tensor in state.values())
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight"),
        ("model.norm.weight", "output_norm.weight"),
    ):
        assert torch.equal(state[ours], dequantised(path, theirs).to(torch.bfloat16))
    assert ("lm_head.weight" in state) is not tied

    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["tie_word_embeddings"]) == ("bfloat16", tied)
    assert "quantization_config" not in config
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE


@pytest.mark.parametrize(
    ("lacks", "named"), [("template", "chat template"), ("norm", r"model\.norm\.weight")]
)
def test_a_file_that_lacks_something_is_refused(tmp_path, folder: Path, lacks: str, named: str):
    write_gguf(tmp_path / "model.gguf", **{lacks: False})
    with pytest.raises(get_model.GetModelError, match=named):
        get_model.dequantise(tmp_path / "model.gguf", folder)
