"""Every architecture that has exits, on a tiny random checkpoint of each.

What is the same for all of them is tested once, on real weights, in the files beside this one.
Here: the layers are found, the river is really theirs, and the router reads the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from river_vllm import RiverConfig, costs
from river_vllm.architectures import ARCHITECTURES
from river_vllm.engine import warm_up
from tests.support import engines
from tests.support.engines import Generated, generate, greedy
from tests.support.families import (
    EVERY_EXIT,
    GROUP_SIZE,
    LAYERS,
    SAME_RIVER,
    make_checkpoint,
    random_prompts,
)
from tests.support.forms import form
from tests.support.pool import runner_of
from tests.support.reference import Reference
from tests.support.rounding import recorded_similarities

TOKENS = 24
EXIT = {"threshold": -1.0, "min_layers": 2}
EXACT = {"threshold": 1.0}

# What vLLM's compiler fuses decides what it rounds: those that it once had differ from stock vLLM.
# In the last one layers with a window share one rotary embedding, those without another.
COMPILED = form(
    short=("Gemma3ForCausalLM",),
    long=("Olmo2ForCausalLM", "Phi3ForCausalLM", "Gemma3ForCausalLM"),
)
CASES = [pytest.param(name, False, id=name) for name in ARCHITECTURES] + [
    pytest.param(name, True, id=f"{name}-compiled") for name in COMPILED
]

pytestmark = [
    pytest.mark.engine,
    pytest.mark.parametrize(("architecture", "compiled"), CASES, scope="module"),
]

# vLLM's Transformers backend changes transformers' own classes, so those are used before it.
_made: dict[str, tuple[Path, Reference]] = {}


@dataclass
class Family:
    """An architecture's engine, reference, prompts and answers."""

    river: Any
    reference: Reference
    prompts: list[dict[str, list[int]]]
    expected: list[Generated]
    """Stock vLLM's answers."""


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Start-up work that is of no interest here, left out."""
    with pytest.MonkeyPatch.context() as patch, engines.registry_restored():
        patch.setattr(costs, "ROWS", (1, 2))
        # What compiles each layer by itself says so there: none of these models does.
        patch.setattr(warm_up, "logger", None)
        yield


@pytest.fixture(scope="module")
def family(architecture: str, compiled: bool, tmp_path_factory: Any, quick: None) -> Family:
    if architecture not in _made:
        folder: Path = tmp_path_factory.mktemp(architecture)
        make_checkpoint(architecture, folder)
        _made[architecture] = folder, Reference(folder, "rtn", GROUP_SIZE)
    folder, reference = _made[architecture]
    engines.inspect_here(architecture)
    options: dict[str, Any] = {
        "max_model_len": 128,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 8 << 20,
        "skip_tokenizer_init": True,
        "enforce_eager": not compiled,
    }
    if architecture.endswith("ForConditionalGeneration"):
        options["limit_mm_per_prompt"] = {"image": 0, "video": 0}
    config = RiverConfig(**SAME_RIVER, **EVERY_EXIT)
    stock = engines.stock_engine(folder, **options)
    river = engines.river_engine(
        folder, config, max_logprobs=64, logprobs_mode="raw_logits", **options
    )
    prompts = random_prompts((5, 9, 40, 17), seed=1)
    return Family(river, reference, prompts, generate(stock, prompts, greedy(TOKENS)))


def test_exact_is_stock(family: Family) -> None:
    """River off, alone in a batch and beside requests that exit: stock vLLM's tokens."""
    expected = family.expected
    tokens = {token for answer in expected for token in answer.tokens}
    assert len(tokens) > 3, "these answers show nothing"
    off = generate(family.river, family.prompts, greedy(TOKENS, {"enabled": False}))
    assert [answer.tokens for answer in off] == [answer.tokens for answer in expected]
    settings = [greedy(TOKENS, EXIT if index % 2 else EXACT) for index in range(4)]
    mixed = generate(family.river, family.prompts, settings)
    for index, answer in enumerate(mixed):
        if index % 2:
            assert answer.exit_layers[1:] == [2] * (TOKENS - 1)
        else:
            assert answer.tokens == expected[index].tokens


def test_forced_exit_is_the_reference(family: Family) -> None:
    """Logits of every step against transformers' model, at the right depth and at a wrong one."""
    prompt = family.prompts[2]

    def forced(depth: int) -> Generated:
        params = greedy(TOKENS, {"threshold": -1.0, "min_layers": depth}, logprobs=64)
        (answer,) = generate(family.river, [prompt], params)
        return answer

    error = partial(family.reference.error, prompt["prompt_token_ids"])
    rounding = error(forced(LAYERS), LAYERS)
    for depth in (1, 2):
        answer = forced(depth)
        # bf16 against float32, see tests/engine/test_river.py.
        assert error(answer, depth) < min(2 * rounding, 0.1)
        assert error(answer, 3) > 2 * rounding


def test_rows_that_run_again_by_themselves(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mixed step as a compiling engine runs it, with or without compiler."""
    routed = runner_of(family.river).get_model().river.routed
    monkeypatch.setattr(routed, "within_compiled", True)
    params = [greedy(TOKENS, EXACT) for _ in family.prompts]
    params[2] = greedy(TOKENS, EXIT, logprobs=64)
    mixed = generate(family.river, family.prompts, params)
    for index in (0, 1, 3):
        assert mixed[index].tokens == family.expected[index].tokens
    assert mixed[2].exit_layers[1:] == [2] * (TOKENS - 1)
    prompt = family.prompts[2]["prompt_token_ids"]
    assert family.reference.error(prompt, mixed[2], 2) < 0.1


def test_the_router_sees_the_residual_stream(family: Family) -> None:
    """The similarity after each layer is that of transformers' ``hidden_states``."""
    prompt = family.prompts[2]
    with recorded_similarities(family.river) as seen:
        # High enough that no token leaves, and every layer is compared.
        (answer,) = generate(family.river, [prompt], greedy(12, {"threshold": 0.99999}))
    found = torch.tensor(np.array(seen)).view(11, LAYERS - 1).t()
    tokens = [*prompt["prompt_token_ids"], *answer.tokens[:-1]]
    expected = family.reference.similarities(tokens)[:, -11:]
    # bf16 states against float32 ones; another tensor of the layer is off by tenths.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
    assert expected.amax() - expected.amin() > 0.1, "all similarities alike: this shows nothing"
