"""Verified mode: the river drafts, and the answers are stock vLLM's own.

A verifying pass has more rows than stock's step, and a CPU's products may round otherwise at
another number of rows. Two logits that are neighbours can then change places; nothing else may.
How far that goes is measured: stock vLLM's logits alone against its own in a batch, and against
those with which it reads the answer as a prompt.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import _custom_ops as ops
from vllm.sampling_params import RepetitionDetectionParams, StructuredOutputsParams

from river_vllm import RiverConfig
from river_vllm.calibrate import shipped_for
from river_vllm.config import load_config_file, parse_config
from river_vllm.model.rounding import SIZES
from river_vllm.modes import mode_that_made
from river_vllm.modes.verified import DraftSummary, VerifiedMode
from tests.support import engines
from tests.support.engines import (
    Generated,
    generate,
    generate_alone,
    generated,
    greedy,
    run_with_kv,
)
from tests.support.forms import form
from tests.support.pool import few_blocks, free_blocks, runner_of
from tests.support.prompts import PROMPTS
from tests.support.rounding import logit_rounding, same_up_to_a_near_tie, shared_length

pytestmark = pytest.mark.engine

K = 3
OFF = {"enabled": False}
BUDGET = "thinking_token_budget"
# With torch's kernel verified steps have vLLM's products, and so its rounding, on every CPU.
DRAFTS = RiverConfig(verify=K, draft="fixed", scope="token", max_rows="all", kernel="torch")


def reread(stock: Any, prompt: Any, tokens: Sequence[int]) -> list[dict[int, float]]:
    """Stock vLLM's log-probabilities of an answer's tokens, and of its own likeliest in their
    places, each after the tokens before it."""
    text = stock.get_tokenizer().encode(prompt) if isinstance(prompt, str) else prompt
    params = greedy(1, logprobs=8, prompt_logprobs=8)
    context = {"prompt_token_ids": [*text, *tokens[:-1]]}
    (output,) = stock.generate([context], params, use_tqdm=False)
    places = [*output.prompt_logprobs[len(text) :], *output.outputs[0].logprobs]
    return [{token: entry.logprob for token, entry in place.items()} for place in places]


def gap(engine: Any) -> float:
    """The widest gap of two logits that stock vLLM's own batches may close: twice what one logit
    moves by, since the other may move the other way."""
    prompts, params = PROMPTS[8:16], greedy(32, logprobs=2)
    alone = generate_alone(engine, prompts, params)
    worst = logit_rounding(alone, generate(engine, prompts, params))
    for prompt, answer in zip(prompts, alone, strict=True):
        again = reread(engine, prompt, answer.tokens)
        for once, twice in zip(answer.logprobs, again, strict=True):
            worst = max([worst, *(abs(once[t] - twice[t]) for t in once.keys() & twice.keys())])
    return 2 * worst


@pytest.fixture(scope="session")
def near_smollm2(stock_smollm2: Any) -> float:
    return gap(stock_smollm2)


@pytest.fixture(scope="session")
def near_qwen2(stock_qwen2: Any) -> float:
    return gap(stock_qwen2)


@pytest.fixture(scope="session")
def near_int8(stock_int8: Any) -> float:
    return gap(stock_int8)


@pytest.fixture(scope="session")
def verified_int8(tiny_int8: Path) -> Any:
    return engines.river_engine(tiny_int8, DRAFTS)


@pytest.fixture(scope="session")
def verified_smollm2(smollm2: Any) -> Any:
    return engines.river_engine(smollm2, DRAFTS, **engines.THINKING)


@pytest.fixture(scope="session")
def verified_qwen2(tiny_qwen2: Any) -> Any:
    """A random model, whose river is often wrong; few blocks, so that requests preempt."""
    return engines.river_engine(tiny_qwen2, DRAFTS, num_gpu_blocks_override=24, **engines.THINKING)


@pytest.fixture(scope="session")
def default_qwen2(tiny_qwen2: Any) -> Any:
    """As a server that nobody has told anything: as many drafts as pay."""
    return engines.river_engine(tiny_qwen2, RiverConfig())


@pytest.fixture(params=["smollm2", "qwen2", "int8"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any, float]:
    kinds = ("stock", "verified", "near")
    stock, verified, near = (request.getfixturevalue(f"{k}_{request.param}") for k in kinds)
    return stock, verified, near


def answers(engine: Any, prompts: list[Any], params: Any) -> tuple[list[Any], DraftSummary]:
    """Each request's only choice, and what became of the drafts of all."""
    summary = DraftSummary()
    choices = [o.outputs[0] for o in engine.generate(prompts, params, use_tqdm=False)]
    for choice in choices:
        assert len(choice.routed_experts) == len(choice.token_ids)
        if type(mode_that_made(choice.routed_experts)) is VerifiedMode:
            summary.add(choice.routed_experts)
    return choices, summary


def assert_stocks(stock: Any, prompts: Sequence[Any], found: Sequence[Any], near: float) -> None:
    """Each token of each answer is the one that stock vLLM likes best there, up to a near-tie."""
    for prompt, choice in zip(prompts, found, strict=True):
        places = reread(stock, prompt, choice.token_ids)
        for index, (token, place) in enumerate(zip(choice.token_ids, places, strict=True)):
            short = max(place.values()) - place.get(token, float("-inf"))
            assert short <= near, f"token {index} of {choice.token_ids}: {short}"


def assert_same(found: Sequence[Any], expected: list[Generated], near: float) -> None:
    """Token for token, up to a near-tie of stock's."""
    for ours, theirs in zip(found, expected, strict=True):
        same_up_to_a_near_tie(ours.token_ids, theirs, near)


def test_what_is_shipped_is_for_the_checkpoint_that_the_tool_writes(
    smollm2: Path, verified_smollm2: Any
) -> None:
    """It is found by hashes: of other bytes there would be none."""
    assert shipped_for(str(smollm2)).stem == "smollm2-135m"
    (info,) = verified_smollm2.collective_rpc("river_info")
    record = parse_config(load_config_file(shipped_for(str(smollm2))), "shipped").calibration
    assert record is not None
    assert record.tested["group_sizes"] == info["group_sizes"]


def test_alone(pair: tuple[Any, Any, float]) -> None:
    """Each request in a batch of its own; drafts of both fates."""
    stock, engine, near = pair
    prompts, tokens = PROMPTS[::4], 48
    found, total = [], DraftSummary()
    for prompt in prompts:
        choices, summary = answers(engine, [prompt], greedy(tokens))
        assert summary.tokens == tokens - 1
        found += choices
        total.drafted += summary.drafted
        total.accepted += summary.accepted
    assert 0 < total.accepted < total.drafted
    assert_same(found, generate_alone(stock, prompts, greedy(tokens, logprobs=2)), near)
    assert_stocks(stock, prompts, found, near)


def test_in_a_batch(pair: tuple[Any, Any, float]) -> None:
    """Beside requests that do not draft, and that end at different lengths."""
    stock, engine, near = pair
    lengths = [64, 1, 2, 33, 64, 5, 64, 48]
    params = [greedy(n, OFF if i % 4 == 0 else None) for i, n in enumerate(lengths)]
    found, summary = answers(engine, PROMPTS[:8], params)
    assert [len(choice.token_ids) for choice in found] == lengths
    assert_stocks(stock, PROMPTS[:8], found, near)
    assert summary.drafted > 0
    layers = engine.collective_rpc("river_info")[0]["num_layers"]
    for index in (0, 4):
        assert generated(found[index]).exit_layers == [layers] * 64


@pytest.mark.parametrize("kind", ["smollm2", "qwen2", "int8"])
def test_no_bit_depends_on_drafts_or_on_other_requests(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, without drafts, and, where products of many rows sum as those of few do, among
    sixteen: one answer, to the bit of its log-probabilities."""
    engine = request.getfixturevalue(f"verified_{kind}")
    runner = runner_of(engine)
    prompts, params = PROMPTS[:16], greedy(form(short=20, long=48), logprobs=2)

    def run(how: Callable[..., list[Generated]]) -> list[Any]:
        engine.reset_prefix_cache()
        return [(found.tokens, found.logprobs) for found in how(engine, prompts, params)]

    alone = run(generate_alone)
    if runner.river_alike.most >= SIZES[-1]:
        assert run(generate) == alone
    drafter = runner.drafter
    monkeypatch.setattr(drafter, "propose", lambda **_: [[] for _ in runner.input_batch.req_ids])
    assert run(generate_alone) == alone


def test_keys_are_split_as_in_stock_where_a_request_is_exact(
    verified_qwen2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's attention may sum in another order for each batch. Only exact requests need that."""
    split, scheduled = [], ops.cpu_attn_get_scheduler_metadata

    def noting(*args: Any, **kwargs: Any) -> Any:
        split.append(kwargs["enable_kv_split"])
        return scheduled(*args, **kwargs)

    monkeypatch.setattr(ops, "cpu_attn_get_scheduler_metadata", noting)
    for fields, expected in (([None], False), ([None, OFF], True)):
        verified_qwen2.reset_prefix_cache()
        split.clear()
        params = [greedy(1, field) for field in fields]
        generate(verified_qwen2, PROMPTS[: len(params)], params)
        assert split == [expected]


def test_by_default(stock_qwen2: Any, default_qwen2: Any, near_qwen2: float) -> None:
    """Whole passes, of as many rows as a step may have, are timed at load, and decide."""
    (info,) = default_qwen2.collective_rpc("river_info")
    assert set(info["costs"]) - {"verify"} == {"backbone", "river", "draft"}
    assert list(info["costs"]["river"]["ms"]) == ["1", "2", "4", "8", "16"]
    assert list(info["costs"]["draft"]["ms"])[:5] == ["1", "2", "4", "8", "16"]
    # A step of exits has no more rows than there are requests.
    assert list(info["crossover"]["speedup_by_rows"]) == ["1", "2", "4", "8", "16"]
    # On CPUs without bf16 instructions River's own product serves verified steps. It rounds
    # otherwise than stock vLLM's, whose rows do not depend on each other there: a few units of bf16
    # at the size of this model's logits.
    near = max(2**-4, near_qwen2)
    for prompts in (PROMPTS[:1], PROMPTS[:8]):
        found, _ = answers(default_qwen2, prompts, greedy(48))
        assert_stocks(stock_qwen2, prompts, found, near)
    # Of prompts whose blocks no verified request has written.
    off, stock = (
        generate(engine, PROMPTS[8:12], greedy(24, OFF)) for engine in (default_qwen2, stock_qwen2)
    )
    assert [answer.tokens for answer in off] == [answer.tokens for answer in stock]


def test_one_new_token_of_a_prompt_is_no_draft(stock_smollm2: Any, verified_smollm2: Any) -> None:
    """vLLM would give it rows of placeholder drafts, whatever the request asks for."""
    prompt = [{"prompt_token_ids": list(range(500, 533))}]
    pair = (verified_smollm2, stock_smollm2)
    for engine in pair:
        engine.reset_prefix_cache()
    for _ in range(2):  # the second time from its blocks
        (biased,) = generate(verified_smollm2, prompt, greedy(4, logit_bias={5: 100.0}))
        assert biased.tokens == [5] * 4
        (exiting,) = generate(verified_smollm2, prompt, greedy(16, {"threshold": 0.9}))
        assert exiting.decode_tokens == 15
        params = greedy(16, OFF, temperature=1.0, seed=7)
        (ours,), (theirs,) = (generate(engine, prompt, params) for engine in pair)
        assert ours.tokens == theirs.tokens
        assert ours.decode_tokens == 15


def test_preempted(stock_qwen2: Any, verified_qwen2: Any, near_qwen2: float) -> None:
    """A preempted request is computed again without its drafts."""
    with few_blocks(verified_qwen2, free_blocks(verified_qwen2)) as preempted:
        found, summary = answers(verified_qwen2, PROMPTS[:12], greedy(96))
    assert preempted
    assert 0 < summary.accepted < summary.drafted
    assert_stocks(stock_qwen2, PROMPTS[:12], found, near_qwen2)


def test_up_to_the_last_token_of_the_context(
    stock_qwen2: Any, verified_qwen2: Any, near_qwen2: float
) -> None:
    """One request at the end of its context does not stop another's drafts."""
    long = [5 + i % 97 for i in range(500)]
    prompts = [{"prompt_token_ids": long}, {"prompt": PROMPTS[0]}]
    found, summary = answers(verified_qwen2, prompts, greedy(64))
    assert len(found[0].token_ids) == 12
    assert_stocks(stock_qwen2, [long, PROMPTS[0]], found, near_qwen2)
    assert summary.drafted > 3 * 12


def test_kv_is_the_backbones(verified_smollm2: Any) -> None:
    """What is kept is exact: K and V of every accepted position, read from the blocks.

    How far the backbone's own may be apart is seen where it reads the same tokens as a prompt: on
    some CPUs a product of several rows rounds otherwise than one of a single row.
    """
    engine = verified_smollm2
    prompts = [engine.get_tokenizer().encode(text) for text in PROMPTS[:3]]

    def run(texts: list[list[int]], tokens: int, river: Any) -> list[dict[str, Any]]:
        engine.reset_prefix_cache()
        return run_with_kv(engine, tokens, texts, [greedy(256, river)] * 3)

    drafted, exact = run(prompts, 40, None), run(prompts, 40, OFF)
    reread = run([answer["tokens"] for answer in exact], 1, OFF)
    compared = 0
    for prompt, ours, once, twice in zip(prompts, drafted, exact, reread, strict=True):
        count = min(shared_length(ours["tokens"], once["tokens"]), ours["written"], once["written"])
        compared += count - len(prompt)
        for half in ("k", "v"):
            found, own, again = (kv[half][:, :count].float() for kv in (ours, once, twice))
            assert close(found, own) > min(0.999, close(again, own)) - 0.005
    # Answers may part at a near-tie; what lies before it was drafted and kept.
    assert compared >= 16


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    """The part of the values that rounding explains: bf16 rounds to 2^-8 of a value, and the states
    that K and V come from add some of it up. Of 4-bit layers' K and V it is far less."""
    return float(torch.isclose(a, b, 2**-6, 2**-5).float().mean())


def test_blocks_are_shared_with_exact_requests(
    stock_smollm2: Any, verified_smollm2: Any, near_smollm2: float
) -> None:
    """A next turn that may not draft reads the blocks that drafts went through."""
    engine = verified_smollm2
    engine.reset_prefix_cache()
    prompt = engine.get_tokenizer().encode(PROMPTS[2])
    (first,), summary = answers(engine, [{"prompt_token_ids": prompt}], greedy(96))
    assert summary.accepted > 0
    longer = [{"prompt_token_ids": prompt + list(first.token_ids)}]
    (output,) = engine.generate(longer, greedy(32, OFF), use_tqdm=False)
    assert output.num_cached_tokens >= len(prompt) + 64
    expected = generate(stock_smollm2, longer, greedy(32, logprobs=2))
    assert_same(output.outputs, expected, near_smollm2)


def sampled(
    engine: Any, temperature: float, count: int = 160, **options: Any
) -> Counter[tuple[int, ...]]:
    """Second and third token of many answers to one prompt, beside one that drafts more."""
    params = greedy(4, **options)
    params.temperature, params.top_k, params.n = temperature, 5, count
    _, output = engine.generate([PROMPTS[0], PROMPTS[2]], [greedy(256), params], use_tqdm=False)
    return Counter(tuple(choice.token_ids[1:3]) for choice in output.outputs)


def likeness(a: Counter[tuple[int, ...]], b: Counter[tuple[int, ...]]) -> float:
    """p of a two-sample chi-square test; rare outcomes are counted together."""
    usual = [pair for pair, n in (a + b).items() if n >= 10]
    table = torch.tensor([[found[pair] for pair in usual] for found in (a, b)])
    totals = torch.tensor([[a.total()], [b.total()]])
    table = torch.cat([table, totals - table.sum(1, keepdim=True)], dim=1).double()
    table = table[:, table.sum(0) > 0]
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    statistic = ((table - expected) ** 2 / expected).sum()
    freedom = torch.tensor(table.shape[1] - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


def test_sampled_answers_have_stocks_distribution(
    stock_smollm2: Any, verified_smollm2: Any
) -> None:
    """And a distribution that is a little sharper does not pass for it."""
    stocks_distribution = sampled(stock_smollm2, 1.0)
    assert likeness(sampled(verified_smollm2, 1.0), stocks_distribution) > 0.001
    assert likeness(sampled(verified_smollm2, 0.6), stocks_distribution) < 0.001


def test_sampled_answers_by_a_grammar_have_stocks_distribution(
    stock_smollm2: Any, verified_smollm2: Any
) -> None:
    """The river drafts as if there were none, and vLLM cuts its drafts by what was drawn."""
    options = {"structured_outputs": StructuredOutputsParams(regex="( [a-z]+){20}")}
    found = sampled(verified_smollm2, 1.0, **options)
    assert likeness(found, sampled(stock_smollm2, 1.0, **options)) > 0.001


def test_a_seed_decides(verified_smollm2: Any) -> None:
    params = greedy(48)
    params.temperature, params.seed = 1.0, 7
    first, summary = answers(verified_smollm2, PROMPTS[:1], params)
    again, _ = answers(verified_smollm2, PROMPTS[:1], params)
    assert summary.accepted > 0
    assert list(first[0].token_ids) == list(again[0].token_ids)


def test_log_probabilities_are_the_backbones(
    stock_smollm2: Any, verified_smollm2: Any, near_smollm2: float
) -> None:
    """Stock reads the answer itself: its own may part from it at a near-tie."""
    for prompt in PROMPTS[:2]:
        (ours,) = generate(verified_smollm2, [prompt], greedy(24, logprobs=3))
        theirs = reread(stock_smollm2, prompt, ours.tokens)
        for mine, stock in zip(ours.logprobs, theirs, strict=True):
            both = mine.keys() & stock.keys()
            assert len(both) >= 3
            assert max(abs(mine[t] - stock[t]) for t in both) <= near_smollm2


@pytest.mark.parametrize("logprobs", [None, 2])
def test_log_probabilities_of_named_tokens(
    stock_smollm2: Any, verified_smollm2: Any, near_smollm2: float, logprobs: int | None
) -> None:
    """Beside requests that draft: there the rejection sampler loses them, or ends the engine."""
    named = greedy(4, logprobs=logprobs, logprob_token_ids=[5, 6])
    (expected,) = generate(stock_smollm2, PROMPTS[1:2], named)
    beside, found = generate(verified_smollm2, PROMPTS[:2], [greedy(24), named])
    assert len(beside.tokens) == 24
    assert found.tokens == expected.tokens
    for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True):
        assert {5, 6} <= ours.keys() == theirs.keys()
        assert max(abs(ours[t] - theirs[t]) for t in ours) <= near_smollm2


def test_an_answer_ends_where_it_may_first(
    stock_smollm2: Any, verified_smollm2: Any, near_smollm2: float
) -> None:
    """The token that would end it is forbidden before ``min_tokens``, among drafts and after."""
    (whole,) = generate_alone(stock_smollm2, PROMPTS[:1], greedy(16))
    place = next(i for i in range(8, 16) if whole.tokens[i] not in whole.tokens[:i])
    for least in range(place - 3, place + 1):
        options = {"min_tokens": least, "stop_token_ids": [whole.tokens[place]]}
        expected = generate_alone(stock_smollm2, PROMPTS[:1], greedy(32, logprobs=2, **options))
        assert len(expected[0].tokens) == place + 1
        found, _ = answers(verified_smollm2, PROMPTS[:1], greedy(32, **options))
        assert_same(found, expected, near_smollm2)


def test_stop_strings(verified_smollm2: Any) -> None:
    """A stop in the middle of what was drafted cuts the tokens after it off, and their count."""
    (whole,), _ = answers(verified_smollm2, PROMPTS[2:3], greedy(64))
    for word in whole.text.split()[6:9]:
        (found,), summary = answers(verified_smollm2, PROMPTS[2:3], greedy(64, stop=[word]))
        assert found.finish_reason == "stop"
        assert found.text == whole.text[: whole.text.index(word)]
        assert summary.tokens == len(found.token_ids) - 1


def test_thoughts_end_within_their_budget(
    stock_qwen2: Any, verified_qwen2: Any, near_qwen2: float
) -> None:
    """Each of many, beside drafts: vLLM's own state of a budget misses some where it speculates."""
    encode = verified_qwen2.get_tokenizer().encode
    start, end = encode(" the.")
    few = {"allowed_token_ids": [start, end, *range(300, 308)], "frequency_penalty": 2.0}
    params = [greedy(96, river, logprobs=4, **few, **{BUDGET: 1}) for river in (None, OFF)]
    prompts = ["Once upon a time", "Once upon a time", PROMPTS[2]]
    ours, theirs = (
        generate(engine, prompts, [*params, greedy(96)]) for engine in (verified_qwen2, stock_qwen2)
    )
    for found, expected in zip(ours[:2], theirs[:2], strict=True):
        same_up_to_a_near_tie(found.tokens, expected, near_qwen2)
        assert found.exit_layers[1:] == [6] * 95, "none is a draft"
        assert expected.tokens[: shared_length(found.tokens, expected.tokens)].count(start) > 4


def some_parameters(chance: random.Random, names: Sequence[int]) -> dict[str, Any]:
    """One to three sampling parameters that change a greedy request's tokens, or what it reports.

    ``names`` are the tokens of its prompt and of thoughts: lists of tokens have them.
    """
    tokens = [*names, *(chance.randrange(3, 49152) for _ in range(24))]
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"presence_penalty": chance.uniform(-2, 2)},
        lambda: {"frequency_penalty": chance.uniform(-2, 2)},
        lambda: {"repetition_penalty": chance.uniform(0.8, 1.5)},
        lambda: {"bad_words": chance.sample(["a", "the", " of", "ing", "e", "New York"], 3)},
        lambda: {"allowed_token_ids": tokens},
        lambda: {"allowed_token_ids": tokens[:8], "frequency_penalty": 2.0, BUDGET: 1},
        lambda: {BUDGET: chance.randrange(6)},
        lambda: {"logit_bias": {token: chance.uniform(-9, 9) for token in tokens}},
        lambda: {"structured_outputs": StructuredOutputsParams(regex="( [a-z]+){9}")},
        lambda: {"stop_token_ids": tokens, "min_tokens": chance.randrange(12)},
        lambda: {"stop": [chance.choice("abcdefgh")]},
        lambda: {"repetition_detection": RepetitionDetectionParams(4, 1, 3)},
        lambda: {"logprobs": chance.randrange(4)},
        lambda: {"prompt_logprobs": chance.randrange(4)},
        lambda: {"seed": chance.randrange(9), "top_k": 9, "top_p": 0.5, "min_p": 0.1},
    ]
    if chance.random() < 0.02:  # drafts of requests beside it are discarded
        return {"logprob_token_ids": tokens[:3]}
    made: dict[str, Any] = {}
    for kind in chance.sample(kinds, chance.randint(1, 3)):
        made |= kind()
    if "structured_outputs" in made:  # which these contradict
        made = {k: v for k, v in made.items() if k not in ("allowed_token_ids", BUDGET)}
    return made


def test_any_sampling_parameters(stock_qwen2: Any, verified_qwen2: Any, near_qwen2: float) -> None:
    """Greedy requests, eight in a batch: stock's tokens in the same batch."""
    chance, encode = random.Random(29), verified_qwen2.get_tokenizer().encode
    thoughts, crowd = encode(" the."), 8
    total, compared, tokens = DraftSummary(), 0, 0
    for _ in range(form(short=12, long=25)):
        prompts = [f"{chance.randrange(99)}. {text}" for text in chance.sample(PROMPTS, crowd)]
        options = [some_parameters(chance, [*thoughts, *encode(text)]) for text in prompts]
        lengths = [chance.randint(8, 32) for _ in prompts]
        kinds = [OFF if chance.random() < 0.25 else None for _ in prompts]
        asked = [
            greedy(max(n, some.get("min_tokens", 0)), river, **some)
            for n, river, some in zip(lengths, kinds, options, strict=True)
        ]
        theirs = [params.clone() for params in asked]
        for params in theirs:
            params.logprobs, params.logprob_token_ids = 20, None
        found, summary = answers(verified_qwen2, prompts, asked)
        total.drafted += summary.drafted
        total.accepted += summary.accepted
        expected = generate(stock_qwen2, prompts, theirs)
        for ours, stock, params in zip(found, expected, asked, strict=True):
            same = shared_length(ours.token_ids, stock.tokens)
            compared, tokens = compared + same, tokens + len(stock.tokens)
            if same == len(ours.token_ids) == len(stock.tokens):
                continue
            place, token = stock.logprobs[same], ours.token_ids[same]
            # A penalty of repetition multiplies logits.
            scale = max(params.repetition_penalty, 1 / params.repetition_penalty)
            short = max(place.values()) - place.get(token, float("-inf"))
            assert short <= near_qwen2 * scale, f"token {same} of {params}: {token}, {short}"
    assert 0 < total.accepted < total.drafted
    assert compared > tokens / 2


def test_exits_drafts_and_the_backbone_share_steps(
    stock_qwen2: Any, verified_qwen2: Any, near_qwen2: float
) -> None:
    """Each as it is in an engine of its own kind, with preemption and the prefix cache; and again,
    now that the cache holds what each has left there."""
    exits = {"threshold": -1.0, "min_layers": 2}
    kinds = [exits, None, OFF]
    count, tokens = form(short=90, long=201), 32
    prompts = [f"{index // 3}. {PROMPTS[index // 3 % len(PROMPTS)]}" for index in range(count)]
    params = [greedy(tokens, kinds[index % 3]) for index in range(count)]
    exact = [index for index in range(count) if index % 3]
    verified_qwen2.reset_prefix_cache()
    alone = generate_alone(verified_qwen2, prompts[::3], greedy(tokens, exits))
    for _ in range(2):
        found, summary = answers(verified_qwen2, prompts, params)
        assert 0 < summary.accepted < summary.drafted
        assert_stocks(
            stock_qwen2, [prompts[i] for i in exact], [found[i] for i in exact], near_qwen2
        )
        same = 0
        for choice, own in zip(found[::3], alone, strict=True):
            ours = generated(choice)
            assert ours.exit_layers == own.exit_layers == [6] + [2] * (tokens - 1)
            same += shared_length(ours.tokens, own.tokens)
        assert same > tokens * len(alone) // 2, "more rows round otherwise now and then"
