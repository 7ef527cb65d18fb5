"""Architectures without exits: the river drafts, and the answers are stock vLLM's.

No line of River names them. Rows are the architectures of docs/models.md, on a tiny random
checkpoint of each. Orion, GraniteSWA and TeleChat2 were drawn: ``random.Random(20261202)`` shuffles
the names of vLLM's text-generation models without exits; those of a refused form are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm import RiverConfig
from river_vllm.engine import self_check
from river_vllm.step.table import Span
from server.models import DRAFTED
from tests.support import engines
from tests.support.engines import generate, generate_alone, greedy
from tests.support.families import (
    DRAFTS,
    GROUP_SIZE,
    REWRITTEN,
    SAME_RIVER,
    make_checkpoint,
    random_prompts,
)
from tests.support.forms import form
from tests.support.pool import runner_of
from tests.support.reference import Reference
from tests.support.rounding import assert_verified, drafted

TOKENS = 24
OFF = {"enabled": False}
CONFIG = RiverConfig(**SAME_RIVER, **DRAFTS)
OPTIONS: dict[str, Any] = {
    **{"max_model_len": 128, "skip_tokenizer_init": True, "kv_cache_memory_bytes": 16 << 20},
    **{"max_logprobs": 64, "logprobs_mode": "raw_logits"},
}
PROMPTS = random_prompts(range(5, 53, 3), seed=1)
CASES: dict[str, tuple[str, bool]] = {
    **{name: (name, False) for name in DRAFTED},
    "GPTNeoXForCausalLM-compiled": ("GPTNeoXForCausalLM", True),
    **form(short={}, long={"GPT2LMHeadModel-compiled": ("GPT2LMHeadModel", True)}),
}

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

# vLLM's Transformers backend changes transformers' own classes, so those are used before it.
_made: dict[str, tuple[Path, Reference | None]] = {}


@pytest.fixture(scope="module")
def own_registry() -> Iterator[None]:
    with engines.registry_restored():
        yield


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: Any, own_registry: None
) -> tuple[Any, Any, Reference | None]:
    """Stock vLLM, River and, where transformers has the architecture, its model."""
    architecture, compiled = CASES[request.param]
    if architecture not in _made:
        folder = make_checkpoint(architecture, tmp_path_factory.mktemp(architecture))
        known = architecture not in REWRITTEN
        _made[architecture] = folder, Reference(folder, "rtn", GROUP_SIZE) if known else None
    folder, reference = _made[architecture]
    engines.inspect_here(architecture)
    options = {**OPTIONS, "enforce_eager": not compiled}
    stock = engines.stock_engine(folder, **options)
    river = engines.river_engine(folder, CONFIG, **options)
    return stock, river, reference


def test_verified_is_stock(case: tuple[Any, Any, Reference | None]) -> None:
    """Alone and in a batch, with drafts kept; with the river off to the token."""
    stock, river, _ = case
    alone = generate_alone(stock, PROMPTS, greedy(TOKENS, logprobs=8))
    assert len({token for answer in alone for token in answer.tokens}) > 3, "this shows nothing"
    assert_verified(river, PROMPTS, alone)
    batch = generate(stock, PROMPTS, greedy(TOKENS, logprobs=8))
    assert_verified(river, PROMPTS, batch, together=True)
    off = generate(river, PROMPTS, greedy(TOKENS, OFF))
    assert [answer.tokens for answer in off] == [answer.tokens for answer in batch]


def test_a_draft_pass_is_the_reference(case: tuple[Any, Any, Reference | None]) -> None:
    """Its logits are those of transformers' model with 4-bit weights, and no other's."""
    _, river, reference = case
    (found,) = river.collective_rpc("river_info")
    assert found["self_check"]["passed"]
    if reference is None:
        return
    tokens = PROMPTS[4]["prompt_token_ids"]
    runner = runner_of(river)
    forward = runner.river_forward
    with torch.inference_mode():
        due = forward.decode([Span(0, 0, len(tokens))], torch.tensor(tokens), 0, "backbone")
        logits = forward.logits(due).float()[8:]

    def error(depth: int) -> float:
        expected = reference.logits(tokens[:9], tokens[9:], depth, prompt_exits=True)
        return float((logits - expected).square().mean().sqrt() / expected.std())

    # bf16 against float32, as in tests/engine/test_families.py.
    assert error(0) < min(0.1, error(reference.num_layers) / 2)


def test_a_river_that_is_another_models_is_not_used(
    case: tuple[Any, Any, Reference | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer gets the 4-bit weights of the next but one, whose shapes are the same."""
    stock, river, _ = case
    warned: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *_: warned.append(text))
    monkeypatch.setattr(self_check, "logger", logger)
    runner = runner_of(river)
    methods = [[linear.quant_method for linear in layer] for layer in forward_linears(runner)]
    own = [[method._packed for method in layer] for layer in methods]
    try:
        put(methods, [*own[2:], *own[:2]])
        runner.river_begin()
        (found,) = river.collective_rpc("river_info")
        assert not found["self_check"]["passed"]
        assert len(warned) == 1
        found, summary = drafted(river, PROMPTS[:1], greedy(TOKENS))
        (expected,) = generate(stock, PROMPTS[:1], greedy(TOKENS))
        assert found == [expected.tokens]
        assert summary.drafted == 0
    finally:
        put(methods, own)
        runner.river_begin()


def forward_linears(runner: Any) -> Any:
    return runner.river_forward.river._linears


def put(methods: Any, packed: Any) -> None:
    for layer, weights in zip(methods, packed, strict=True):
        for method, weight in zip(layer, weights, strict=True):
            method._packed = weight
