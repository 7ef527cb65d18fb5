"""Two ranks on the CPU: the tokens and depths of one, also where the ranks would decide apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.lora.request import LoRARequest

from experiments.make_quantized import write_copy
from river_vllm import RiverConfig
from tests.support import engines
from tests.support.adapters import RANK, Adapted, make_adapter
from tests.support.engines import Generated, generate, greedy
from tests.support.families import (
    DRAFTS,
    EVERY_EXIT,
    GROUP_SIZE,
    SAME_RIVER,
    make_checkpoint,
    random_prompts,
)
from tests.support.rounding import drafted, same_up_to_a_near_tie

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

# Groups of 64 lie the same way in a whole projection and in its halves.
CONFIG = RiverConfig(lm_head="river", **SAME_RIVER, **EVERY_EXIT, **DRAFTS)
FOUR_BIT = RiverConfig(cache_dir="off", group_size=GROUP_SIZE, kernel="torch", **DRAFTS)
OPTIONS: dict[str, Any] = {
    "max_logprobs": 8,
    "logprobs_mode": "raw_logits",
    "max_model_len": 128,
    "skip_tokenizer_init": True,
}
TOKENS = 32
PROMPTS = random_prompts((5, 9, 40, 17, 30, 12, 7, 21))
SETTINGS = [
    {"enabled": False},
    {"threshold": 0.7},
    {"threshold": 0.8},
    {"threshold": -1.0, "min_layers": 3},
]


# A small vocabulary: among fifty thousand random logits the best two are too often alike.
@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("LlamaForCausalLM", tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def one(tiny_llama: Path) -> Any:
    return engines.river_engine(tiny_llama, CONFIG, **OPTIONS)


@pytest.fixture(scope="module")
def two(tiny_llama: Path) -> Iterator[Any]:
    with _of_two(tiny_llama, CONFIG) as engine:
        yield engine


@pytest.fixture(scope="module")
def stock(tiny_llama: Path) -> Iterator[Any]:
    with _of_two(tiny_llama, None) as engine:
        yield engine


@contextmanager
def _of_two(model: Path, config: RiverConfig | None, **more: Any) -> Iterator[Any]:
    """An engine of two ranks, stock vLLM's without ``config``, which ends with the block."""
    options = {**OPTIONS, **more, "tensor_parallel_size": 2}
    with _a_core_for_each_rank():
        made = (
            engines.stock_engine(model, **options)
            if config is None
            else engines.river_engine(model, config, **options)
        )
    try:
        yield made
    finally:
        engines.end(made)


@contextmanager
def _a_core_for_each_rank() -> Iterator[None]:
    """vLLM's own choice is a NUMA node for each rank."""
    from vllm.envs import disable_envs_cache

    with pytest.MonkeyPatch.context() as patch:
        cores = sorted(os.sched_getaffinity(0))
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
        # An engine of this process has vLLM remember what the variables were.
        disable_envs_cache()
        yield
        disable_envs_cache()


def _run(engine: Any, **options: Any) -> list[Generated]:
    params = [greedy(TOKENS, settings, **options) for settings in SETTINGS * 2]
    return generate(engine, PROMPTS, params)


def test_tokens_and_depths_are_those_of_one_rank(one: Any, two: Any) -> None:
    """Up to the first token at which two logits are as good as equal.

    Halves of a sum are rounded to bf16 before they are added, so logits differ in their last bits.
    """
    expected, found = _run(one, logprobs=8), _run(two, logprobs=8)
    same = until_ties(found, expected)
    for a, b, steps in zip(expected, found, same, strict=True):
        assert a.exit_layers[:steps] == b.exit_layers[:steps]
    assert sum(same) > 4 * TOKENS, "too few steps were compared"
    assert len({layer for a in expected for layer in a.exit_layers}) > 2


@pytest.mark.parametrize("settings", [None, {"enabled": False}], ids=["verified", "exact"])
def test_an_answer_is_stocks_of_the_same_size(
    stock: Any, two: Any, settings: dict[str, Any] | None
) -> None:
    expected = generate(stock, PROMPTS, greedy(TOKENS, logprobs=8))
    found = generate(two, PROMPTS, greedy(TOKENS, settings, logprobs=8))
    assert sum(until_ties(found, expected)) > len(PROMPTS) * TOKENS / 2


def test_as_many_drafts_are_kept_as_with_one_rank(one: Any, two: Any) -> None:
    kept = []
    for engine in (one, two):
        _, summary = drafted(engine, PROMPTS, greedy(TOKENS))
        assert 0 < summary.accepted < summary.drafted
        kept.append(summary.accepted / summary.drafted)
    assert abs(kept[0] - kept[1]) < 0.1, kept


def test_both_ranks_have_the_first_ones_costs(two: Any) -> None:
    """Each rank runs every pass that is timed; what rank 0 saw holds."""
    first, second = two.collective_rpc(_costs)
    assert first == second


def _costs(worker: Any) -> dict[str, list[float]]:
    """On the worker: the costs that a start measures where decisions go by them."""
    from river_vllm.costs import Kind
    from river_vllm.engine.warm_up import costs_of_start
    from river_vllm.modes.mode import Timed

    runner = worker.model_runner
    forward = runner.river_forward
    timed: dict[Kind, Timed] = {
        "river": Timed(lambda rows: forward.idle(rows, 2, "backbone"), 4),
        "draft": Timed(lambda rows: forward.idle(rows, 0, "draft"), 4),
    }
    costs, kinds = costs_of_start(runner, forward, timed), ("backbone", "river", "draft")
    return {kind: [costs.seconds(kind, rows) for rows in (1, 2, 4)] for kind in kinds}


def test_with_the_rivers_head(two: Any) -> None:
    """Each rank has its own candidates of its own part of the vocabulary."""
    bf16 = generate(two, PROMPTS, greedy(TOKENS, SETTINGS[3], logprobs=8))
    four_bit = generate(two, PROMPTS, greedy(TOKENS, SETTINGS[3]))
    assert [a.tokens for a in four_bit] == [a.tokens for a in bf16]


def test_ranks_that_would_decide_apart_do_not(two: Any) -> None:
    """Rank 1 sees other similarities than rank 0: rank 0 decides, and nobody waits for ever."""
    expected = _run(two)
    two.collective_rpc(_disturb)
    try:
        found = _run(two)
    finally:
        apart = two.collective_rpc(_undisturb)
    assert apart[0] == 0
    assert apart[1] > 10, "the ranks would have decided alike: this shows nothing"
    assert [a.tokens for a in found] == [a.tokens for a in expected]
    assert [a.exit_layers for a in found] == [a.exit_layers for a in expected]


def _disturb(worker: Any) -> None:
    """On the worker: from now on rank 1's own similarities are noise."""
    router = worker.model_runner.get_model().river.router
    agree, generator = router._broadcast, torch.Generator().manual_seed(0)

    def disturbed(values: torch.Tensor) -> torch.Tensor:
        own = values.clone()
        if worker.rank == 1:
            own = torch.rand(values.shape, generator=generator)
        agreed = agree(own.clone())
        worker.river_apart += int(((own > 0.75) != (agreed > 0.75)).sum())
        return agreed

    worker.river_apart, worker.river_agree = 0, agree
    router._broadcast = disturbed


def _undisturb(worker: Any) -> int:
    """How often a rank's own similarity was on the other side of 0.75."""
    worker.model_runner.get_model().river.router._broadcast = worker.river_agree
    return int(worker.river_apart)


def until_ties(found: list[Generated], expected: list[Generated]) -> list[int]:
    """Of each answer the tokens before a near-tie."""
    pairs = zip(found, expected, strict=True)
    return [same_up_to_a_near_tie(ours.tokens, theirs) for ours, theirs in pairs]


@pytest.mark.parametrize("form", ["w8a8", "w4a16"])
def test_a_quantised_backbone(form: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Two ranks have the tokens of one, exact and verified."""
    write_copy(tiny_llama, tmp_path, form, group_size=64)
    config = CONFIG if form == "w8a8" else FOUR_BIT
    one = engines.river_engine(tmp_path, config, **OPTIONS)
    settings = SETTINGS if form == "w8a8" else [{"enabled": False}, {}]
    params = [greedy(TOKENS, river, logprobs=8) for river in settings * (8 // len(settings))]
    expected = generate(one, PROMPTS, params)
    with _of_two(tmp_path, config) as two:
        found = generate(two, PROMPTS, params)
        _, summary = drafted(two, PROMPTS, greedy(TOKENS))
    assert sum(until_ties(found, expected)) > len(PROMPTS) * TOKENS / 4
    assert 0 < summary.accepted < summary.drafted


def test_adapters(tiny_llama: Path, tmp_path: Path) -> None:
    """Two ranks have the tokens of one with an adapter and without, exact, exiting and verified."""
    adapter = LoRARequest("a", 1, str(make_adapter(tiny_llama, tmp_path / "a", 1)))
    of_prompt = [*[adapter] * len(SETTINGS), *[None] * len(SETTINGS)]
    prompts = [{**p, "adapter": a} for p, a in zip(PROMPTS, of_prompt, strict=True)]
    options = {"enable_lora": True, "max_loras": 1, "max_lora_rank": RANK}
    params = [greedy(TOKENS, settings, logprobs=8) for settings in SETTINGS * 2]
    one = Adapted(engines.river_engine(tiny_llama, CONFIG, **OPTIONS, **options))
    expected = generate(one, prompts, params)
    with _of_two(tiny_llama, CONFIG, **options) as engine:
        two = Adapted(engine)
        found = generate(two, prompts, params)
        plain = generate(two, [{**p, "adapter": None} for p in prompts], params)
        _, summary = drafted(two, prompts, greedy(TOKENS))
    assert sum(until_ties(found, expected)) > len(prompts) * TOKENS / 4
    changed = [ours.tokens != theirs.tokens for ours, theirs in zip(found, plain, strict=True)]
    assert all(changed[: len(SETTINGS)]), "the adapter changes nothing"
    assert 0 < summary.accepted < summary.drafted
