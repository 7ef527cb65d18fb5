"""Which settings find the compiled forwards of an earlier start, and which must not."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from river_vllm import RiverConfig, engine_args, graph_key
from river_vllm.graph_key import RiverAdditionalConfig

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
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


def built(model: Path, config: RiverConfig | None = None, **options: Any) -> Any:
    """The configuration as a worker gets it: from another process."""
    from vllm.engine.arg_utils import EngineArgs

    made = EngineArgs(
        model=str(model), **engine_args(str(model), config, skip_tokenizer_init=True, **options)
    ).create_engine_config()
    return pickle.loads(pickle.dumps(made))


def key(model: Path, config: RiverConfig | None = None, **options: Any) -> str:
    from vllm.compilation.caching import aot_compile_hash_factors

    return str(aot_compile_hash_factors(built(model, config, **options)))


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.5, "min_layers": 3, "prefill": "sequence", "scope": "batch"},
        {
            "max_rows": "all",
            "quantizer": "rtn",
            "group_size": 32,
            "activations": "int8",
            "kernel": "dequantize",
        },
        {"lm_head": "river", "cache_dir": "/elsewhere", "verify": 2, "draft": "fixed"},
        {"resident_layers": "all", "deep": "exit"},  # defaults that are spelled out
    ],
    ids=lambda settings: "-".join(settings),
)
def test_another_setting_reads_the_same_graphs(model: Path, settings: dict[str, Any]) -> None:
    assert key(model, RiverConfig.model_validate(settings)) == key(model)


def test_a_setting_that_is_not_known_to_stay_outside_is_in_the_key(model: Path) -> None:
    assert key(model, RiverConfig(resident_layers=2)) != key(model)


@pytest.mark.parametrize("part", ["sources", "machine"])
def test_another_river_or_another_cpu_reads_other_graphs(
    model: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(model)
    monkeypatch.setattr(graph_key, part, lambda: "another")
    assert key(model) != before


def test_a_cpu_that_is_said_to_lack_instructions_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, there = graph_key.machine.__wrapped__(), torch.cpu._is_avx512_supported()
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: not there)
    assert graph_key.machine.__wrapped__() != before


def test_stock_vllm_reads_none_of_rivers(model: Path) -> None:
    from vllm.compilation.caching import aot_compile_hash_factors
    from vllm.engine.arg_utils import EngineArgs

    stock = EngineArgs(model=str(model), skip_tokenizer_init=True).create_engine_config()
    assert str(aot_compile_hash_factors(stock)) != key(model)


def test_without_additional_config_rivers_key_is_vllms_too(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``vllm serve`` with the architecture alone makes it."""
    from vllm.compilation.caching import aot_compile_hash_factors
    from vllm.engine.arg_utils import EngineArgs

    def of_architecture() -> tuple[Any, str]:
        overrides = {"architectures": ["RiverLlamaForCausalLM"]}
        made = EngineArgs(model=str(model), hf_overrides=overrides, skip_tokenizer_init=True)
        config = pickle.loads(pickle.dumps(made.create_engine_config()))
        return config, str(aot_compile_hash_factors(config))

    config, before = of_architecture()
    assert isinstance(config.additional_config, RiverAdditionalConfig)
    assert dict(config.additional_config) == {}
    monkeypatch.setattr(graph_key, "sources", lambda: "another")
    assert of_architecture()[1] != before


def test_a_checkpoints_own_settings_count_where_they_are_in_graphs() -> None:
    plain = RiverAdditionalConfig({}, {"threshold": 0.5})
    assert plain.compute_hash() == RiverAdditionalConfig({}).compute_hash()
    offloading = RiverAdditionalConfig({}, {"resident_layers": 2})
    assert offloading.compute_hash() != plain.compute_hash()
