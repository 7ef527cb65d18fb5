"""Two ranks on the CPU: stock vLLM's answers with two, the depths and drafts of one rank, and equal
decisions where the ranks would decide apart."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from river_vllm import RiverConfig
from river_vllm.costs import Costs
from river_vllm.modes import mode_that_made
from river_vllm.modes.verified import DraftSummary, VerifiedMode
from tests.support import engines
from tests.support.engines import Generated, generate, generate_alone, greedy
from tests.support.families import VOCABULARY, make_checkpoint
from tests.support.rounding import logit_rounding

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

# Groups of 64 lie the same way in a whole projection and in its halves.
CONFIG = RiverConfig(
    quantizer="rtn",
    group_size=64,
    kernel="torch",
    lm_head="river",
    cache_dir="off",
    scope="token",
    max_rows="all",
    verify=3,
)
OPTIONS: dict[str, Any] = {
    "max_logprobs": 8,
    "logprobs_mode": "raw_logits",
    "max_model_len": 128,
    "skip_tokenizer_init": True,
}
TOKENS = 32
_GENERATOR = torch.Generator().manual_seed(3)
PROMPTS = [
    {"prompt_token_ids": torch.randint(3, VOCABULARY, (n,), generator=_GENERATOR).tolist()}
    for n in (5, 9, 40, 17, 30, 12, 7, 21)
]
OFF = {"enabled": False}
EXITS = [OFF, {"threshold": 0.7}, {"threshold": 0.8}, {"threshold": -1.0, "min_layers": 3}]
MIXED = [None, OFF, {"threshold": 0.7}, {"threshold": 0.8}]
PAYS = Costs.fixed({"draft": {1: 1e-3, 64: 1e-3}, "backbone": {1: 0.1, 64: 0.1}})
"""Costs at which every draft pays, as timings of so small a model may not say."""


# A small vocabulary: among fifty thousand random logits the best two are too often alike.
@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("tiny-llama"))


# The session's: an engine that ends takes the process's distributed groups with it.
@pytest.fixture(scope="session")
def one(tiny_llama: Path) -> Any:
    return engines.river_engine(tiny_llama, CONFIG, **OPTIONS)


@pytest.fixture(scope="session")
def two(tiny_llama: Path) -> Any:
    return _on_two_cores(lambda **ranks: engines.river_engine(tiny_llama, CONFIG, **ranks))


@pytest.fixture(scope="session")
def stock(tiny_llama: Path) -> Any:
    return _on_two_cores(lambda **ranks: engines.stock_engine(tiny_llama, **ranks))


@pytest.fixture(scope="session")
def near(stock: Any, one: Any) -> float:
    """The widest gap of two logits that rounding closes: halves of a sum are rounded to bf16 before
    they are added, and a product may round otherwise with more rows. One logit may fall by as much
    as the other rises."""
    params = greedy(TOKENS, OFF, logprobs=8)
    alone = generate_alone(stock, PROMPTS, params)
    others = [generate(stock, PROMPTS * times, params) for times in (1, 4)]
    others.append(generate(one, PROMPTS, params))
    return 2 * max(logit_rounding(alone * 4, other) for other in others)


def _on_two_cores(start: Callable[..., Any]) -> Any:
    from vllm.envs import disable_envs_cache

    with pytest.MonkeyPatch.context() as patch:
        # vLLM's own choice is a NUMA node for each rank; here each has a core.
        cores = sorted(os.sched_getaffinity(0))
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
        # An engine of this process has vLLM remember what the variables were.
        disable_envs_cache()
        engine = start(tensor_parallel_size=2, **OPTIONS)
        disable_envs_cache()
    return engine


def _run(engine: Any, kinds: list[Any], **options: Any) -> list[Generated]:
    return generate(engine, PROMPTS, [greedy(TOKENS, kind, **options) for kind in kinds * 2])


def _drafted(engine: Any, **options: Any) -> tuple[list[Generated], DraftSummary]:
    """Verified answers, and what became of their drafts."""
    outputs = engine.generate(PROMPTS, greedy(TOKENS, logprobs=8, **options), use_tqdm=False)
    choices, summary = [output.outputs[0] for output in outputs], DraftSummary()
    for choice in choices:
        assert type(mode_that_made(choice.routed_experts)) is VerifiedMode
        summary.add(choice.routed_experts)
    return [engines.generated(choice) for choice in choices], summary


def test_both_ranks_have_the_same_in_force(two: Any) -> None:
    """What passes cost too, which rank 0 has timed."""
    first, second = two.collective_rpc("river_info")
    for name in ("kernels", "group_sizes", "num_layers", "river_bytes", "crossover", "verify"):
        assert first[name] == second[name]
    assert set(first["costs"]) - {"verify"} == {"backbone", "draft"}
    of_each = ({kind: c["ms"] for kind, c in i["costs"].items()} for i in (first, second))
    assert next(of_each) == next(of_each)


def test_exact_answers_are_stocks(two: Any, stock: Any) -> None:
    expected, found = (generate(e, PROMPTS, greedy(TOKENS, OFF)) for e in (stock, two))
    assert [a.tokens for a in found] == [a.tokens for a in expected]


def test_verified_answers_are_stocks_and_drafts_are_kept_as_with_one_rank(
    one: Any, two: Any, stock: Any, near: float
) -> None:
    shares = []
    for engine in (one, two):
        engine.collective_rpc(_drafts_pay)
        answers, summary = _drafted(engine)
        expected = generate(stock, PROMPTS, greedy(TOKENS, logprobs=8))
        same = [_until_a_tie(a, b, near) for a, b in zip(expected, answers, strict=True)]
        assert sum(same) > 4 * TOKENS, "too few tokens were compared"
        assert 0 < summary.accepted < summary.drafted
        shares.append(summary.accepted / summary.drafted)
    # Two tokens of the river may be as likely as each other, too.
    assert shares[1] == pytest.approx(shares[0], abs=0.1)


def test_both_ranks_learn_the_same_of_sampled_drafts(two: Any) -> None:
    """Each rank samples for itself, as stock vLLM's do, from equal logits."""
    two.collective_rpc(_drafts_pay)
    _, summary = _drafted(two, temperature=1.0)
    assert 0 < summary.accepted < summary.drafted
    first, second = two.collective_rpc(_learnt)
    assert first == second


def test_tokens_and_depths_are_those_of_one_rank(one: Any, two: Any, near: float) -> None:
    expected, found = (_run(engine, EXITS, logprobs=8) for engine in (one, two))
    same = [_until_a_tie(a, b, near) for a, b in zip(expected, found, strict=True)]
    for a, b, steps in zip(expected, found, same, strict=True):
        assert a.exit_layers[:steps] == b.exit_layers[:steps]
    assert sum(same) > 4 * TOKENS, "too few steps were compared"
    assert len({layer for a in expected for layer in a.exit_layers}) > 2


def test_with_the_rivers_head(two: Any) -> None:
    """Each rank has its own candidates of its own part of the vocabulary."""
    bf16 = generate(two, PROMPTS, greedy(TOKENS, EXITS[3], logprobs=8))
    four_bit = generate(two, PROMPTS, greedy(TOKENS, EXITS[3]))
    assert [a.tokens for a in four_bit] == [a.tokens for a in bf16]


def test_ranks_that_would_decide_apart_do_not(two: Any) -> None:
    """Rank 1 sees other similarities, drafts and confidences than rank 0: rank 0 decides, and
    nobody waits for ever."""
    two.collective_rpc(_drafts_pay)
    expected = _run(two, MIXED)
    two.collective_rpc(_disturb)
    try:
        found = _run(two, MIXED)
    finally:
        first, second = two.collective_rpc(_undisturb)
    assert first == [0, 0]
    assert min(second) > 10, "the ranks would have decided alike: this shows nothing"
    assert [a.tokens for a in found] == [a.tokens for a in expected]
    assert [a.exit_layers for a in found] == [a.exit_layers for a in expected]


def _drafts_pay(worker: Any) -> None:
    runner = worker.model_runner
    runner.river_exits._costs = runner.drafter._costs = PAYS


def _learnt(worker: Any) -> float:
    """The acceptance rate over all requests."""
    rate: float = worker.model_runner.drafter._acceptance.rate("a new request")
    return rate


def _disturb(worker: Any) -> None:
    """On the worker: from now on what rank 1 would decide by is noise."""
    router = worker.model_runner.get_model().river.router
    agree, generator = router._broadcast, torch.Generator().manual_seed(0)

    def disturbed(values: torch.Tensor) -> torch.Tensor:
        own = values.clone()
        if worker.rank == 1:
            own = torch.rand(values.shape, generator=generator, dtype=values.dtype)
        agreed = agree(own.clone())
        # Similarities have one number for each row, picks of drafts two.
        worker.river_apart[values.dim() - 1] += int(((own > 0.75) != (agreed > 0.75)).sum())
        return agreed

    worker.river_apart, worker.river_agree = [0, 0], agree
    router._broadcast = disturbed


def _undisturb(worker: Any) -> list[int]:
    """How often a rank's own values were on the other side of 0.75: similarities, and picks."""
    worker.model_runner.get_model().river.router._broadcast = worker.river_agree
    apart: list[int] = worker.river_apart
    return apart


def _until_a_tie(a: Generated, b: Generated, near: float) -> int:
    """Equal tokens from the start; where they part, the two best logits are close in both."""
    for step, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=True)):
        if x != y:
            for answer in (a, b):
                best = sorted(answer.logprobs[step].values(), reverse=True)
                assert best[0] - best[1] <= near, f"step {step}: {best[:2]}"
            return step
    return len(a.tokens)
