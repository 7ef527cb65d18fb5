"""How much a batch's shape alone changes what an engine computes, and what that may excuse.

A product of one row and the same row of a larger product round differently in bfloat16. Two runs
of one request may therefore part at a near-tie: between the two likeliest tokens, or between a
similarity and its threshold. Both are measured here, and everything else is a fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from river_vllm.modes import mode_that_made
from river_vllm.modes.verified import DraftSummary, VerifiedMode
from tests.support.engines import Generated, generate, greedy


@dataclass(frozen=True)
class Rounding:
    """What the backbone's own answers differ by, alone and in a batch.

    Attributes:
        logits: largest difference of one logit, from stock vLLM.
        similarity: largest difference of one transition similarity, with nothing exiting.
    """

    logits: float
    similarity: float


@dataclass(frozen=True)
class Alone:
    """A request's answer in batches of its own, and the similarities that decided its depths."""

    answer: Generated
    similarities: list[list[float]] = field(default_factory=list)
    """For each token, s after 1, 2, … layers, as far as it was looked at."""


@contextmanager
def recorded_similarities(engine: Any) -> Iterator[list[Any]]:
    """What the router of an in-process engine compares, one array for each comparison."""
    (river,) = engine.collective_rpc(_river)
    seen: list[Any] = []

    class Record:
        def similarity(self, layers_run: int, values: Any) -> None:
            seen.append(values.cpu().numpy().copy())

        def ran(self, done: Any, hidden: Any) -> None: ...

    river.observer = Record()
    try:
        yield seen
    finally:
        river.observer = None


def run_alone(engine: Any, prompt: Any, params: Any, num_layers: int) -> Alone:
    engine.reset_prefix_cache()
    with recorded_similarities(engine) as seen:
        (answer,) = generate(engine, [prompt], params)
    values = iter(float(v) for (v,) in seen)
    similarities: list[list[float]] = [[]]  # the first token comes out of the prompt
    measured = bool(seen)
    for depth in answer.exit_layers[1:]:
        count = min(depth, num_layers - 1) if measured else 0
        similarities.append([next(values) for _ in range(count)])
    return Alone(answer, similarities)


def logit_rounding(alone: Sequence[Generated], batch: Sequence[Generated]) -> float:
    """Largest difference of a reported logit while both answers agree."""
    worst = 0.0
    for a, b in zip(alone, batch, strict=True):
        until = first_difference(a, b)
        for one, other in zip(a.logprobs[:until], b.logprobs[:until], strict=False):
            worst = max([worst, *(abs(one[t] - other[t]) for t in one.keys() & other.keys())])
    return worst


def similarity_rounding(engine: Any, prompts: Sequence[Any], params: Any, num_layers: int) -> float:
    """Largest difference of a similarity, alone and in one batch; ``params`` must never exit."""
    alone = [run_alone(engine, prompt, params, num_layers) for prompt in prompts]
    engine.reset_prefix_cache()
    with recorded_similarities(engine) as seen:
        together = generate(engine, prompts, params)
    steps = np.stack(seen).reshape(-1, num_layers - 1, len(prompts))
    worst = 0.0
    for index, (one, other) in enumerate(zip(alone, together, strict=True)):
        until = first_difference(one.answer, other)
        for token in range(1, len(other.tokens) if until is None else until):
            difference = steps[token - 1, :, index] - np.array(one.similarities[token])
            worst = max(worst, float(np.abs(difference).max()))
    return worst


def first_difference(a: Generated, b: Generated) -> int | None:
    """The first token that two answers do not share, or whose depth they do not."""
    for index, (one, other) in enumerate(zip(_steps(a), _steps(b), strict=True)):
        if one != other:
            return index
    return None


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens before the first difference."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def assert_same_answer(alone: Alone, other: Generated, threshold: float, by: Rounding) -> int:
    """Tokens and depths are those of the request served alone, up to a near-tie if there is one.

    Returns:
        How many tokens were compared.
    """
    mine = alone.answer
    index = first_difference(mine, other)
    if index is None:
        return len(mine.tokens)
    if mine.exit_layers[index] == other.exit_layers[index]:
        first, second = sorted(mine.logprobs[index].values(), reverse=True)[:2]
        # One may have fallen by as much as the other has risen.
        assert first - second <= 2 * by.logits, f"token {index}: not a near-tie"
    else:
        shallow = min(mine.exit_layers[index], other.exit_layers[index])
        similarity = alone.similarities[index][shallow - 1]
        assert abs(similarity - threshold) <= by.similarity, f"token {index}: depth"
    return index


def assert_verified(
    engine: Any, prompts: Sequence[Any], expected: Sequence[Generated], together: bool = False
) -> None:
    """Verified answers are those expected up to a near-tie, and drafts are in them.

    Each prompt is answered alone, or all of them ``together`` in a batch. ``expected`` are greedy
    answers with log-probabilities, as long as the verified ones.
    """
    found, summary = drafted(engine, prompts, greedy(len(expected[0].tokens)), together)
    pairs = zip(found, expected, strict=True)
    same = sum(same_up_to_a_near_tie(ours, theirs) for ours, theirs in pairs)
    assert 0 < summary.accepted < summary.drafted
    assert same > sum(len(theirs.tokens) for theirs in expected) / 2


def drafted(
    engine: Any, prompts: Sequence[Any], params: Any, together: bool = True
) -> tuple[list[list[int]], DraftSummary]:
    """The tokens of verified answers, in one batch or each alone; what became of their drafts."""
    batches = [prompts] if together else [[prompt] for prompt in prompts]
    summary, tokens = DraftSummary(), []
    for batch in batches:
        for output in engine.generate(list(batch), params, use_tqdm=False):
            (choice,) = output.outputs
            assert type(mode_that_made(choice.routed_experts)) is VerifiedMode
            summary.add(choice.routed_experts)
            tokens.append(list(choice.token_ids))
    return tokens, summary


def same_up_to_a_near_tie(tokens: Sequence[int], theirs: Generated, near: float = 0.1) -> int:
    """How many tokens are those of ``theirs``, a greedy answer with log-probabilities; where one
    differs, its two likeliest must be within ``near``."""
    assert len(tokens) == len(theirs.tokens)
    same = shared_length(tokens, theirs.tokens)
    if same < len(tokens):
        best, second = sorted(theirs.logprobs[same].values(), reverse=True)[:2]
        assert best - second <= near, f"token {same}"
    return same


def _steps(answer: Generated) -> list[tuple[int, int | None]]:
    depths = answer.exit_layers or [None] * len(answer.tokens)
    return list(zip(answer.tokens, depths, strict=True))


def _river(worker: Any) -> Any:
    return worker.model_runner.get_model().river
