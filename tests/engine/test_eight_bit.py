"""Backbones in INT8 and FP8 (W8A8): stock vLLM's answers, and a river below them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.make_quantized import write_copy
from river_vllm import RiverConfig
from tests.support import engines
from tests.support.engines import Generated, generate, generate_alone, greedy
from tests.support.families import (
    DRAFTS,
    EVERY_EXIT,
    LAYERS,
    SAME_RIVER,
    make_checkpoint,
    random_prompts,
)
from tests.support.rounding import assert_verified

TOKENS = 24
OFF = {"enabled": False}
CONFIG = RiverConfig(**SAME_RIVER, **EVERY_EXIT, **DRAFTS)
OPTIONS: dict[str, Any] = {"max_model_len": 128, "skip_tokenizer_init": True, "max_logprobs": 8}
PROMPTS = random_prompts((5, 9, 40, 17))
CASES = {
    "int8": ("LlamaForCausalLM", "w8a8"),
    # A scale for a whole weight, of fused projections and biases too.
    "int8-tensor": ("Qwen2ForCausalLM", "w8a8-static"),
    "int8-phi3": ("Phi3ForCausalLM", "w8a8"),
    "int8-gemma3": ("Gemma3ForCausalLM", "w8a8"),
    "fp8": ("LlamaForCausalLM", "fp8"),
    "fp8-block": ("Qwen3ForCausalLM", "fp8-block"),
}

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

_made: dict[str, tuple[Path, Any, Any]] = {}


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[Path, Any, Any]:
    """A checkpoint, stock vLLM on it, and River."""
    name = request.param
    if name not in _made:
        architecture, form = CASES[name]
        if form.startswith("fp8") and not torch.cpu._is_amx_tile_supported():
            pytest.skip("vLLM has FP8 products on CPUs with AMX")
        plain = make_checkpoint(architecture, tmp_path_factory.mktemp(f"{name}-plain"))
        model = tmp_path_factory.mktemp(name)
        write_copy(plain, model, form)
        stock = engines.stock_engine(model, **OPTIONS)
        _made[name] = model, stock, engines.river_engine(model, CONFIG, **OPTIONS)
    return _made[name]


def tokens(answers: list[Generated]) -> list[list[int]]:
    return [answer.tokens for answer in answers]


def test_an_exact_answer_is_stocks(pair: tuple[Path, Any, Any]) -> None:
    _, stock, river = pair
    for run in (generate, generate_alone):
        expected = run(stock, PROMPTS, greedy(TOKENS))
        assert tokens(run(river, PROMPTS, greedy(TOKENS, OFF))) == tokens(expected)


def test_a_verified_answer_is_stocks(pair: tuple[Path, Any, Any]) -> None:
    """Up to a near-tie: activations are rounded, and then few logits are equal."""
    _, stock, river = pair
    expected = generate_alone(stock, PROMPTS, greedy(TOKENS, logprobs=8))
    assert_verified(river, PROMPTS, expected)


def test_exits(pair: tuple[Path, Any, Any]) -> None:
    _, _, river = pair
    found = generate(river, PROMPTS, greedy(TOKENS, {"threshold": -1.0, "min_layers": 2}))
    assert all(one.exit_layers == [LAYERS] + [2] * (TOKENS - 1) for one in found)


@pytest.mark.parametrize("pair", ["int8", "fp8", "fp8-block"], indirect=True)
def test_layers_that_are_fetched(pair: tuple[Path, Any, Any]) -> None:
    """The only INT8 copy of a layer is oneDNN's: it is dropped, and read again."""
    model, stock, _ = pair
    config = CONFIG.model_copy(
        update={"resident_layers": 1, "deep": "fetch", "verify": 0, "draft": "adaptive"}
    )
    river = engines.river_engine(model, config, **OPTIONS)
    expected = generate(stock, PROMPTS, greedy(TOKENS))
    assert tokens(generate(river, PROMPTS, greedy(TOKENS, OFF))) == tokens(expected)
    (info,) = river.collective_rpc("river_info")
    assert info["fetches"] > 2


@pytest.mark.parametrize("pair", ["int8"], indirect=True)
def test_layers_that_are_dropped(pair: tuple[Path, Any, Any]) -> None:
    """Where every request leaves after two layers, those of the rest hold no 8-bit weight."""
    model, _, whole = pair
    update = {"resident_layers": 2, "prefill": "sequence", "verify": 0, "draft": "adaptive"}
    config = CONFIG.model_copy(update=update)
    river = engines.river_engine(model, config, **OPTIONS)
    found = generate(river, PROMPTS, greedy(TOKENS, {"threshold": -1.0, "min_layers": 2}))
    assert all(one.exit_layers == [2] * TOKENS for one in found)
    (less,) = river.collective_rpc("river_info")
    (more,) = whole.collective_rpc("river_info")
    assert less["backbone_bytes"] * LAYERS == more["backbone_bytes"] * 2
