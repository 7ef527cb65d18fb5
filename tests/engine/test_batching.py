"""Requests share steps, prompts come in chunks, the K/V pool is too small, some give up.

Each request that stays answers as it does alone: the same tokens at the same depths, up to a
near-tie that the batch's shape decides in stock vLLM too (see ``tests/support/rounding.py``).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support import kv
from tests.support.engines import generate, generate_alone, generated, greedy, run_with_kv
from tests.support.forms import form
from tests.support.pool import few_blocks, requests_of, scheduler_of
from tests.support.prompts import PROMPTS
from tests.support.rounding import (
    Rounding,
    assert_same_answer,
    logit_rounding,
    run_alone,
    same_up_to_a_near_tie,
    shared_length,
    similarity_rounding,
)

pytestmark = pytest.mark.engine

LAYERS = {"qwen2": 6, "smollm2": 30}
TOKENS = {"qwen2": 64, "smollm2": 40}
SETTINGS: list[dict[str, Any]] = [
    {"threshold": -1.0, "min_layers": 1},
    {"enabled": False},
    {"threshold": 0.9},
    {"threshold": -1.0, "min_layers": 3},
    {"threshold": 0.95},
    {"threshold": 1.0},
]
COUNT = len(SETTINGS)
BUDGET = 24
"""Rows of a step: the longer prompts take several."""


@pytest.fixture(scope="module", params=form(short=["qwen2"], long=["qwen2", "smollm2"]))
def crowd(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The same requests alone on River, in a crowd on stock vLLM, and what a crowd rounds by."""
    name = request.param
    stock = request.getfixturevalue(f"stock_{name}")
    river = request.getfixturevalue(f"river_{name}")
    tokens, layers = TOKENS[name], LAYERS[name]
    # Room for one longest answer and then some; all of them together need about twice as much.
    blocks = -(-tokens // 32) + 4
    prompts = PROMPTS[:COUNT]
    params = [greedy(tokens, settings, logprobs=2) for settings in SETTINGS]
    stock_alone = generate_alone(stock, prompts, greedy(tokens, logprobs=2))
    with few_blocks(stock, blocks, BUDGET) as preempted:
        stock_crowd = generate(stock, prompts, greedy(tokens, logprobs=2))
    never = greedy(8, {"threshold": 0.999999}, logprobs=2)
    return {
        "river": river,
        "blocks": blocks,
        "prompts": prompts,
        "params": params,
        "alone": [run_alone(river, p, q, layers) for p, q in zip(prompts, params, strict=True)],
        "stock": stock_crowd,
        "stock preemptions": len(preempted),
        "rounding": Rounding(
            logit_rounding(stock_alone, stock_crowd),
            similarity_rounding(river, prompts, never, layers),
        ),
    }


def test_preempted_requests_answer_as_if_they_were_alone(crowd: dict[str, Any]) -> None:
    with few_blocks(crowd["river"], crowd["blocks"], BUDGET) as preempted:
        answers = generate(crowd["river"], crowd["prompts"], crowd["params"])
    assert len(preempted) >= 2
    assert len(preempted) == crowd["stock preemptions"], "depths must not change the schedule"
    compared = 0
    for settings, alone, stock, found in zip(
        SETTINGS, crowd["alone"], crowd["stock"], answers, strict=True
    ):
        threshold = settings.get("threshold", 1.0)
        if not settings.get("enabled", True) or threshold == 1.0:
            # To the bit where nothing is preempted: ``test_exact.py``.
            same_up_to_a_near_tie(found.tokens, stock, 2 * crowd["rounding"].logits)
        if threshold == -1.0:
            assert found.exit_layers == alone.answer.exit_layers
        compared += assert_same_answer(alone, found, threshold, crowd["rounding"])
    assert compared > sum(len(a.tokens) for a in answers) // 4, "near-ties hide the rest"


def test_requests_join_leave_and_give_up(crowd: dict[str, Any]) -> None:
    """Aborted while they wait, in the midst of a prompt, while they decode, when preempted."""
    engine, prompts, params = crowd["river"], crowd["prompts"], crowd["params"]
    llm, scheduler = engine.llm_engine, scheduler_of(engine)
    requests = requests_of(engine)
    leaver = greedy(90, {"threshold": 0.9})
    long_prompt = {"prompt_token_ids": list(range(100, 190))}
    answers: dict[str, Any] = {}

    def step(times: int = 1) -> None:
        for _ in range(times):
            answers.update((o.request_id, o.outputs[0]) for o in llm.step() if o.finished)

    with few_blocks(engine, crowd["blocks"], BUDGET) as preempted:
        for index, (prompt, param) in enumerate(zip(prompts, params, strict=True)):
            llm.add_request(str(index), prompt, param)
            llm.add_request(f"waits {index}", prompt, leaver)
            llm.abort_request([f"waits {index}"])
            if index % 2:
                llm.add_request(f"decodes {index}", PROMPTS[10 + index], leaver)
            step(3)
            if index == 2:
                llm.add_request("prompt", long_prompt, leaver)
                step(2)
                (request,) = (r for i, r in scheduler.requests.items() if i.startswith("prompt"))
                assert request.num_computed_tokens < 90, "its prompt is not done yet"
                llm.abort_request(["prompt"])
        while not preempted:
            step()
        victims = [i for i in scheduler.requests if i.startswith("decodes")]
        llm.abort_request([i.rsplit("-", 1)[0] for i in victims])
        while llm.has_unfinished_requests():
            step()
    for index, (settings, alone) in enumerate(zip(SETTINGS, crowd["alone"], strict=True)):
        choice = answers[str(index)]
        found = generated(choice)
        if settings.get("threshold") == -1.0:
            assert found.exit_layers == alone.answer.exit_layers
        threshold = settings.get("threshold", 1.0)
        assert_same_answer(alone, found, threshold, crowd["rounding"])
    # What has ended is forgotten with the step that follows.
    generate(engine, ["x"], greedy(1, {"enabled": False}))
    assert len(requests._known) <= 1


def test_a_preempted_requests_kv_is_what_it_was(river_qwen2: Any) -> None:
    """Replayed tokens write the K/V of their own depth: on the backbone it would differ."""
    engine, tokens, layer = river_qwen2, 80, 2
    settings = {"threshold": -1.0, "min_layers": layer}
    texts = [engine.get_tokenizer().encode(text) for text in PROMPTS[:3]]
    params = greedy(tokens + 8, settings)
    with few_blocks(engine, 8) as preempted:
        for index, text in enumerate(texts):
            engine.llm_engine.add_request(f"kv-{index}", {"prompt_token_ids": text}, params)
        while not preempted:
            engine.llm_engine.step()
        victim = preempted[0]
        index = next(i for i in range(3) if victim.startswith(f"kv-{i}"))
        found = _kv_of(engine, victim, tokens)
    (alone,) = run_with_kv(engine, tokens, [texts[index]], [params])
    engine.reset_prefix_cache()
    (exact,) = run_with_kv(engine, 1, [alone["tokens"][:-1]], [greedy(8, {"enabled": False})])
    # The last token has not been an input yet.
    same = shared_length(found["tokens"][:-1], alone["tokens"][:-1])
    first = len(texts[index])
    assert same > first + 12, "too little to compare"
    for half in ("k", "v"):
        ours, theirs = (x[half][:, first:same].flatten(2) for x in (found, alone))
        backbone = exact[half][:, first:same].flatten(2)
        cosine = torch.nn.functional.cosine_similarity
        # bf16 rounding of another batch shape, as tests/engine/test_kv.py allows the backbone.
        assert cosine(ours, theirs, dim=-1).min() > 0.999
        assert cosine(ours, backbone, dim=-1)[layer:].min() < 0.99


def test_seeds_and_choices_in_a_crowd(stock_qwen2: Any, river_qwen2: Any) -> None:
    """n = 3 with a seed, sampled: exact ones are stock vLLM's in the same crowd, to the token."""

    def run(engine: Any, settings: list[dict[str, Any] | None]) -> list[Any]:
        sampled = {"n": 3, "temperature": 0.8, "logprobs": 2}
        params = [greedy(40, s, **sampled, seed=11 + i) for i, s in enumerate(settings)]
        # Without chunks: stock vLLM cannot take a seed and a chunk together on the CPU.
        with few_blocks(engine, 14) as preempted:
            outputs = engine.generate(PROMPTS[:3], params, use_tqdm=False)
        assert preempted
        return [[generated(choice) for choice in output.outputs] for output in outputs]

    expected = run(stock_qwen2, [None, None, None])
    exiting = {"threshold": -1.0, "min_layers": 2}
    mixed = [{"enabled": False}, exiting, {"threshold": 1.0}]
    found = run(river_qwen2, mixed)
    for index in (0, 2):
        assert [c.tokens for c in found[index]] == [c.tokens for c in expected[index]]
    for choice in found[1]:
        assert choice.exit_layers == [LAYERS["qwen2"]] + [2] * 39
    assert len({tuple(choice.tokens) for choice in found[1]}) == 3
    again = run(river_qwen2, mixed)
    assert [[c.tokens for c in cs] for cs in again] == [[c.tokens for c in cs] for cs in found]


@pytest.mark.parametrize("settings", [{"enabled": False}, {"threshold": -1.0, "min_layers": 2}])
def test_a_seed_outlives_the_chunks_of_a_prompt(river_qwen2: Any, settings: dict[str, Any]) -> None:
    """Samples of unfinished prompts are thrown away, and the generator has not moved for them."""
    prompts = [{"prompt_token_ids": list(range(first, first + 90))} for first in (100, 200, 300)]
    params = [greedy(4, settings, temperature=1.0, seed=5 + i) for i in range(3)]
    whole = generate(river_qwen2, prompts, params)
    with few_blocks(river_qwen2, 16, BUDGET):
        in_chunks = generate(river_qwen2, prompts, params)
    first = [(a.tokens[0], b.tokens[0]) for a, b in zip(in_chunks, whole, strict=True)]
    # A chunk's shape may tip a draw; another state of the generator changes every one of them.
    assert sum(a == b for a, b in first) >= 2


def _kv_of(engine: Any, request_id: str, tokens: int) -> dict[str, Any]:
    """Step until the request has ``tokens`` tokens, read its blocks, end everything."""
    llm, scheduler = engine.llm_engine, scheduler_of(engine)
    request = scheduler.requests[request_id]
    while request.num_output_tokens < tokens:
        llm.step()
    (blocks,) = scheduler.kv_cache_manager.get_block_ids(request_id)
    ((k, v),) = engine.collective_rpc(kv.read, args=(list(blocks),))
    found = {"tokens": list(request.all_token_ids), "k": k, "v": v}
    llm.abort_request([name.rsplit("-", 1)[0] for name in scheduler.requests])
    while llm.has_unfinished_requests():
        llm.step()
    return found
