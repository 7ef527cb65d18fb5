"""Requests with pictures: the encoder and the prompt on the backbone, decode drafted and exited.

A tiny random checkpoint of each architecture that sees. The same without pictures is in
tests/engine/test_families.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from river_vllm import RiverConfig
from river_vllm.step.table import Pass
from tests.support import engines
from tests.support.engines import Generated, generate, generate_alone, greedy
from tests.support.families import (
    DRAFTS,
    EVERY_EXIT,
    LAYERS,
    SAME_RIVER,
    VOCABULARY,
    make_checkpoint,
)
from tests.support.pictures import PLACEHOLDER, picture, save_processor
from tests.support.pool import runner_of
from tests.support.rounding import assert_verified, same_up_to_a_near_tie

TOKENS = 24
BLOCK = 32
BEFORE = "Here is a picture, please look at it: "
OFF = {"enabled": False}
EXIT = {"threshold": -1.0, "min_layers": 2}

# M-RoPE and features of pictures in the first layers; of the others, tests/engine/test_families.py.
COMPILED = "Qwen3VLForConditionalGeneration"
CASES = [pytest.param(name, False, id=name) for name in PLACEHOLDER]
CASES.append(pytest.param(COMPILED, True, id=f"{COMPILED}-compiled"))

pytestmark = [
    pytest.mark.engine,
    pytest.mark.parametrize(("architecture", "compiled"), CASES, scope="module"),
]


@dataclass
class Sight:
    """An architecture's engines, prompts and stock vLLM's answers."""

    stock: Any
    river: Any
    prompts: list[dict[str, Any]]
    """One picture, two pictures, none, and the first prompt with another picture."""
    expected: list[Generated]
    """Of stock vLLM, each prompt alone and in no cache."""
    rotates_pictures: bool
    """Whether a picture takes fewer positions than tokens (M-RoPE)."""

    def forget(self) -> None:
        """Empty both prefix caches."""
        for engine in (self.stock, self.river):
            engine.reset_prefix_cache()


@pytest.fixture(scope="module")
def sight(architecture: str, compiled: bool, tmp_path_factory: Any) -> Sight:
    folder: Path = tmp_path_factory.mktemp(architecture)
    make_checkpoint(architecture, folder)
    save_processor(architecture, folder, VOCABULARY)
    options: dict[str, Any] = {
        "max_model_len": 256,
        "max_num_seqs": 8,
        "block_size": BLOCK,
        "kv_cache_memory_bytes": 8 << 20,
        "limit_mm_per_prompt": {"image": 2, "video": 0},
        "enforce_eager": not compiled,
    }
    config = RiverConfig(**SAME_RIVER, **EVERY_EXIT, **DRAFTS)
    stock = engines.stock_engine(folder, **options)
    river = engines.river_engine(folder, config, **options)
    place = PLACEHOLDER[architecture]
    one, two, other = picture(1), picture(2, 112, 56), picture(3)
    seen = f"{BEFORE}{place} Now say what there is to be seen."
    prompts: list[dict[str, Any]] = [
        {"prompt": seen, "multi_modal_data": {"image": one}},
        {"prompt": f"{place} and {place}: compare.", "multi_modal_data": {"image": [one, two]}},
        {"prompt": "No picture at all, only a line of text."},
        {"prompt": seen, "multi_modal_data": {"image": other}},
    ]
    expected = afresh(stock, prompts, greedy(TOKENS, logprobs=2))
    return Sight(stock, river, prompts, expected, architecture.startswith("Qwen"))


def afresh(engine: Any, prompts: list[dict[str, Any]], params: Any) -> list[Generated]:
    """Run each prompt in a batch of its own, with an empty prefix cache."""
    answers = []
    for prompt in prompts:
        engine.reset_prefix_cache()
        answers += generate(engine, [prompt], params)
    return answers


def test_exact_is_stock(sight: Sight) -> None:
    assert sight.expected[0].logprobs != sight.expected[3].logprobs, "the picture does not matter"
    found = afresh(sight.river, sight.prompts, greedy(TOKENS, OFF))
    assert [answer.tokens for answer in found] == [one.tokens for one in sight.expected]


def test_verified_is_stock(sight: Sight) -> None:
    assert_verified(sight.river, sight.prompts, sight.expected)


def test_a_draft_stands_where_the_backbone_verifies_it(
    sight: Sight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong rotary position would cost drafts and no answer, so only the passes tell."""
    forward = runner_of(sight.river).river_forward
    run = forward.run
    places: dict[bool, dict[int, Any]] = {True: {}, False: {}}

    def record(due: Pass) -> Any:
        rows = [span.start + row for span in due.spans for row in range(span.rows)]
        rotary = due.inputs["positions"][..., : len(rows)].movedim(-1, 0).tolist()
        places[due.in_step].update(zip(rows, rotary, strict=True))
        return run(due)

    monkeypatch.setattr(forward, "run", record)
    generate(sight.river, sight.prompts[1:2], greedy(TOKENS))
    step, draft = places[True], places[False]
    both = step.keys() & draft.keys()
    assert len(both) > TOKENS / 2
    assert [draft[place] for place in both] == [step[place] for place in both]
    last = max(both)
    assert (step[last] not in (last, [last] * 3)) is sight.rotates_pictures


def test_exits_beside_an_exact_request(sight: Sight, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact row runs in stock vLLM's batch, the others again by themselves, as alone."""
    routed = runner_of(sight.river).get_model().river.routed
    monkeypatch.setattr(routed, "within_compiled", True)
    prompts = sight.prompts[:3]
    exits = greedy(TOKENS, EXIT, logprobs=2)
    alone = generate_alone(sight.river, prompts, exits)
    sight.forget()
    beside = generate(sight.river, prompts, [exits, greedy(TOKENS, OFF), exits])
    expected = generate(sight.stock, prompts, greedy(TOKENS))
    assert beside[1].tokens == expected[1].tokens
    for index in (0, 2):
        assert beside[index].exit_layers == [LAYERS] + [2] * (TOKENS - 1)
        assert same_up_to_a_near_tie(beside[index].tokens, alone[index]) > TOKENS / 2


def test_a_prompt_that_runs_again_by_itself(sight: Sight, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sequence-level prefill, beside an exact request: the rows of its picture are there."""
    runner = runner_of(sight.river)
    monkeypatch.setattr(runner.get_model().river.routed, "within_compiled", True)
    monkeypatch.setattr(runner.river_exits, "_sequence_prefill", True)
    params = [greedy(TOKENS, EXIT, logprobs=2), greedy(TOKENS, OFF)]
    prompts = [sight.prompts[0], sight.prompts[2]]
    sight.forget()
    (alone,) = generate(sight.river, prompts[:1], params[:1])
    sight.forget()
    beside, _ = generate(sight.river, prompts, params)
    sight.forget()
    assert alone.exit_layers == beside.exit_layers == [2] * TOKENS
    assert same_up_to_a_near_tie(beside.tokens, alone) > TOKENS / 2


def test_a_cached_prefix_has_its_picture(sight: Sight) -> None:
    """An exact request finds the blocks of one that exits, and no block of another picture."""
    sight.forget()
    first, other = sight.prompts[0], sight.prompts[3]

    def ask(engine: Any, prompt: Any, settings: Any = None) -> tuple[list[int], int]:
        (output,) = engine.generate([prompt], greedy(TOKENS, settings), use_tqdm=False)
        return list(output.outputs[0].token_ids), output.num_cached_tokens

    expected = [ask(sight.stock, prompt) for prompt in (first, first, other)]
    found = [ask(sight.river, *asked) for asked in ((first, EXIT), (first, OFF), (other, OFF))]
    assert found[1:] == expected[1:]
    cached = [hits for _, hits in expected]
    assert cached[2] <= len(BEFORE) < cached[1]
    assert ask(sight.river, first)[1] == cached[1]
