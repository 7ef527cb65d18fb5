"""Which settings find the compiled forwards of an earlier start, and which must not."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.compilation.caching import aot_compile_hash_factors
from vllm.engine.arg_utils import EngineArgs

from river_vllm import engine_args, engine_config
from river_vllm.engine_config import RiverAdditionalConfig
from tests.support.engines import inspect_here, registry_restored

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with registry_restored():
        inspect_here("LlamaForCausalLM")
        yield tmp_path


def key_of(model: Path, **options: Any) -> tuple[Any, str]:
    """The configuration as a worker gets it, from another process; and vLLM's key for it."""
    made = EngineArgs(model=str(model), skip_tokenizer_init=True, **options).create_engine_config()
    config = pickle.loads(pickle.dumps(made))
    return config, str(aot_compile_hash_factors(config))


def key(model: Path) -> str:
    return key_of(model, **engine_args(str(model)))[1]


@pytest.mark.parametrize("part", ["sources", "machine"])
def test_another_river_or_another_cpu_reads_other_graphs(
    model: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(model)
    monkeypatch.setattr(engine_config, part, lambda: "another")
    assert key(model) != before


def test_a_cpu_that_is_said_to_lack_instructions_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, there = engine_config.machine.__wrapped__(), torch.cpu._is_avx512_supported()
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: not there)
    assert engine_config.machine.__wrapped__() != before


def test_stock_vllm_reads_none_of_rivers(model: Path) -> None:
    assert key_of(model)[1] != key(model)


def test_without_additional_config_rivers_key_is_vllms_too(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``vllm serve`` with the architecture alone makes it."""
    overrides = {"architectures": ["RiverLlamaForCausalLM"]}
    config, before = key_of(model, hf_overrides=overrides)
    assert isinstance(config.additional_config, RiverAdditionalConfig)
    assert dict(config.additional_config) == {}
    monkeypatch.setattr(engine_config, "sources", lambda: "another")
    assert key_of(model, hf_overrides=overrides)[1] != before


def test_a_checkpoints_own_settings_count_where_they_are_in_graphs() -> None:
    plain = RiverAdditionalConfig({}, {"threshold": 0.5})
    assert plain.compute_hash() == RiverAdditionalConfig({}).compute_hash()
    offloading = RiverAdditionalConfig({}, {"resident_layers": 2})
    assert offloading.compute_hash() != plain.compute_hash()
