"""Which rows leave after which layer."""

from __future__ import annotations

import random
from typing import Any, get_args

import pytest
import torch

from river_vllm.config import Scope
from river_vllm.step.table import Path, StepTable
from tests.unit.support import (
    L,
    Similarities,
    drive,
    expected_depths,
    expected_rows,
    river_rows,
    router,
    spelt,
    states,
    tokens,
)

NEVER = 1 << 30
SCOPES = get_args(Scope)


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


def test_a_state_that_is_not_a_number_never_leaves() -> None:
    table = StepTable(L, [1, 2, 1], [-0.99, -0.99, 0.0], [1, 1, 1])
    for layer in range(L):
        hidden = torch.ones(4, 8)
        hidden[0], hidden[2] = torch.nan, 0.0
        router().decide(table, layer, hidden, None)
    table.close()
    assert table.exit_layer.tolist() == [L, L, 1]


def test_padding_decides_nothing() -> None:
    """vLLM may run more rows than the step has tokens."""
    table = tokens(0.9, 0.9)
    drive(router(), table, spelt("lhllll", "lhllll", "llllll"))
    assert table.exit_layer.tolist() == [1, 1]


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


def test_a_step_without_rows_stays_on_the_backbone() -> None:
    """Warm-up and dummy runs."""
    table = StepTable(L, [], [], [])
    for layer, (hidden, residual) in enumerate(states(spelt("hhhhhh", "hhhhhh"))):
        router().decide(table, layer, hidden, residual)
        assert (table.path, river_rows(table)) == (Path.BACKBONE, set())
