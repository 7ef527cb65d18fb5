"""Which rows leave after which layer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch

from river_vllm.config import Scope
from river_vllm.step.router import CRITERION, Broadcast, Router, by_torch, transition_similarity
from river_vllm.step.table import Path, StepTable

NEVER = 1 << 30
SCOPES = get_args(Scope)
L = 6
"""Decoder layers."""

LETTERS = {"l": 0.2, "m": 0.6, "h": 0.95}

Similarities = Sequence[Sequence[float]]
"""``[row][l]``: cosine of the row's states after l − 1 and l layers; entry 0 is not used."""


def router(broadcast: Broadcast | None = None) -> Router:
    return Router(by_torch(CRITERION), broadcast)


def tokens(*thresholds: float, floor: int = 1, **columns: Any) -> StepTable:
    """A step of decode tokens."""
    groups = len(thresholds)
    return StepTable(L, [1] * groups, thresholds, [floor] * groups, **columns)


def spelt(*rows: str) -> Similarities:
    """Of each row a letter per layer: ``l``, ``m`` or ``h``."""
    return [[LETTERS[letter] for letter in row] for row in rows]


def states(similarities: Similarities) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(hidden, residual) before each layer; their sum turns by the angle of each similarity."""
    angles = torch.tensor(similarities, dtype=torch.float64)
    angles[:, 0] = 1.0
    angles = angles.acos().cumsum(dim=1)
    generator = torch.Generator().manual_seed(0)
    result = []
    for layer in range(angles.shape[1]):
        turn = angles[:, layer]
        stream = torch.stack([turn.cos(), turn.sin()], dim=1) * (layer + 1)
        residual = torch.randn(stream.shape, generator=generator, dtype=torch.float64)
        result.append(((stream - residual).float(), residual.float()))
    return result


def drive(router: Router, table: StepTable, similarities: Similarities) -> list[set[int]]:
    """Run a pass; returns the rows on the river in each layer.

    What the router was shown is overwritten afterwards, as the layers of a model do.
    """
    river: list[set[int]] = []
    for layer, (hidden, residual) in enumerate(states(similarities)):
        router.decide(table, layer, hidden, residual)
        river.append(river_rows(table))
        hidden.fill_(torch.nan)
        residual.fill_(torch.nan)
    table.close()
    return river


def river_rows(table: StepTable) -> set[int]:
    """Rows that are on the river in the layer that runs now."""
    if table.path is Path.BACKBONE:
        return set()
    if table.path is Path.RIVER:
        return set(range(table.num_rows))
    assert table.river_rows is not None
    assert table.river_rows.dtype == torch.int64
    rows: list[int] = table.river_rows.tolist()
    assert rows == sorted(set(rows))
    assert 0 < len(rows) < table.num_rows, "a step on one path only must say so"
    return set(rows)


def expected_depths(table: StepTable, similarities: Similarities) -> list[int]:
    """The exit rule, one group and one layer at a time."""
    ends = table.rows.cumsum()
    depths = [L] * len(ends)
    settled: set[int] = set()

    def has_settled(group: int, layer: int) -> bool:
        if layer < table.floor[group]:
            return False
        if table.replayed[group] or table.threshold[group] <= -1:
            return True
        rows = range(ends[group] - table.rows[group], ends[group])
        return layer > 0 and min(similarities[row][layer] for row in rows) > table.threshold[group]

    for layer in range(L):
        waiting = [g for g in range(len(ends)) if depths[g] == L and table.floor[g] < L]
        now = {g for g in waiting if has_settled(g, layer)}
        settled |= now
        ready = settled if table.scope == "step" else now
        all_are = ready.issuperset(g for g in waiting if not table.replayed[g])
        for group in ready.intersection(waiting):
            if table.scope == "token" or table.replayed[group] or all_are:
                depths[group] = layer
    return depths


def expected_rows(table: StepTable, depths: Sequence[int], layer: int) -> set[int]:
    """Rows that are on the river in ``layer``."""
    left = np.array(depths) <= layer
    return set(np.flatnonzero(np.repeat(left, table.rows)).tolist())


@pytest.mark.parametrize(
    ("scope", "similarities", "depths"),
    [
        ("token", ("lllhll", "lhllll", "llllll"), [3, 1, L]),
        # Who has settled waits for the last one, whatever becomes of its own similarity.
        ("step", ("lhllll", "lllhll"), [3, 3]),
        ("step", ("lhhhhh", "llllll"), [L, L]),
        ("step", ("llhlll", "llhlll"), [2, 2]),
        # All at the same layer, or nobody.
        ("batch", ("lhllll", "lllhll"), [L, L]),
        ("batch", ("lhlhll", "llhhll"), [3, 3]),
        ("batch", ("lhlhll", "llhhll", "llllhl"), [L, L, L]),
    ],
)
def test_who_leaves_together(scope: Scope, similarities: Any, depths: list[int]) -> None:
    table = tokens(*[0.9] * len(depths), scope=scope)
    drive(router(), table, spelt(*similarities))
    assert table.exit_layer.tolist() == depths


@pytest.mark.parametrize("scope", SCOPES)
def test_it_is_the_plain_rule(scope: Scope) -> None:
    for seed in range(150):
        table, similarities = random_step(random.Random(seed), scope)
        river = drive(router(), table, similarities)
        depths = expected_depths(table, similarities)
        assert table.exit_layer.tolist() == depths, seed
        assert river == [expected_rows(table, depths, layer) for layer in range(L)], seed


def random_step(rng: random.Random, scope: Scope) -> tuple[StepTable, Similarities]:
    """Groups that decide, leave at once, leave where they left before, and never leave."""
    groups = range(rng.randint(1, 7))
    rows = [rng.choice([1, 1, 1, 3]) for _ in groups]
    replayed = [rng.random() < 0.2 for _ in groups]
    stay = [rng.random() < 0.2 for _ in groups]
    floor = [NEVER if stay[g] else rng.randint(0 if replayed[g] else 1, L) for g in groups]
    threshold = [rng.choice([-1.0, 0.2, 0.4, 0.6, 0.8]) for _ in groups]
    # Every similarity is at least 0.05 away from every threshold.
    values = [0.05, 0.3, 0.5, 0.7, 0.95]
    similarities = [[rng.choice(values) for _ in range(L)] for _ in range(sum(rows))]
    return StepTable(L, rows, threshold, floor, replayed=replayed, scope=scope), similarities


def test_a_similarity_at_the_threshold_does_not_leave() -> None:
    """An exit takes a similarity above τ, so identical states stay at τ = 1."""
    table = tokens(1.0)
    for layer in range(L):
        router().decide(table, layer, torch.ones(1, 8), None)
    table.close()
    assert table.exit_layer.tolist() == [L]


def test_layers_below_every_floor_cost_nothing() -> None:
    table = tokens(0.5, floor=4)
    nothing: Any = None
    for layer in range(L):
        looked_at = layer in (3, 4)
        hidden = torch.ones(1, 8) if looked_at else nothing
        router().decide(table, layer, hidden, None)
    assert table.exit_layer.tolist() == [4]


def test_tau_of_minus_one_is_not_measured() -> None:
    def broadcast(values: torch.Tensor) -> torch.Tensor:
        raise AssertionError("measured")

    table = tokens(-1.0, -1.0, floor=2)
    drive(router(broadcast), table, spelt("llllll", "llllll"))
    assert table.exit_layer.tolist() == [2, 2]


def test_the_first_ranks_similarities_decide() -> None:
    seen: list[torch.Tensor] = []

    def broadcast(values: torch.Tensor) -> torch.Tensor:
        seen.append(values)
        return torch.where(values > 0.9, 0.0, 1.0)

    table = tokens(0.9, 0.9)
    drive(router(broadcast), table, spelt("lhhhhh", "llllhh"))
    assert table.exit_layer.tolist() == [L, 1]
    assert seen[0].dtype == torch.float32
    # Row 1 is no longer measured once it has left.
    assert [len(values) for values in seen] == [2, 1, 1, 1, 1]


def test_past_the_limit_nobody_stays() -> None:
    """Rows that never leave by themselves too, and what left deeper the first time."""
    table = StepTable(L, [1] * 4, [0.9, 1.0, 0.9, -1.0], [1, NEVER, 1, 5], replayed=[0, 0, 0, 1])
    table.limit = 3
    river = drive(router(), table, spelt("lhllll", "hhhhhh", "llllhl", "hhhhhh"))
    assert river == [set(), {0}, {0}, {0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}]
    assert table.exit_layer.tolist() == [1, 3, 3, 3]


def random_states(rows: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 576, generator=generator) * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_it_is_the_cosine_of_each_row(dtype: torch.dtype, scale: float) -> None:
    before = random_states(16, 0, scale).to(dtype)
    after = (before + random_states(16, 1, scale / 2)).to(dtype)
    expected = torch.cosine_similarity(before.double(), after.double(), dim=-1, eps=0)
    result = transition_similarity(before, after)
    assert result.dtype == torch.float32
    # Sums of 576 products in float32.
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)


def test_rounding_never_lifts_it_above_one() -> None:
    same = random_states(4096, 2)
    unclamped = (same * same).sum(-1) / (same.norm(dim=-1) ** 2)
    assert float(unclamped.max()) > 1.0  # the rounding that the clamp is for
    result = transition_similarity(same, same * 3)
    assert float(result.max()) <= 1.0
    assert float(result.min()) > 1.0 - 1e-5


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_no_threshold_admits_a_state_that_is_zero_or_not_finite(bad: float) -> None:
    good = random_states(1, 4)
    for pair in ((good, torch.full_like(good, bad)), (torch.full_like(good, bad), good)):
        value = transition_similarity(*pair)
        assert bool(value.isnan().all())
        assert not bool((value > -1.0).any())
