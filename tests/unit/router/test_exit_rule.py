"""The router against the exit rule in plain Python, on random steps."""

from __future__ import annotations

import random

import pytest

from river_vllm.router.batch import ExitUnit, StepBatch
from tests.unit.router.support import (
    L,
    Similarities,
    drive,
    expected_depths,
    expected_rows,
    router,
)


def random_batch(rng: random.Random) -> tuple[StepBatch, Similarities]:
    units: list[ExitUnit] = []
    row = 0
    for _ in range(rng.randint(1, 7)):
        count = rng.choice([1, 1, 1, 3])
        if rng.random() < 0.8:
            threshold = rng.choice([-1.0, 0.2, 0.4, 0.6, 0.8])
            forced = rng.random() < 0.2
            units.append(
                ExitUnit(row, row + count, threshold, rng.randint(0 if forced else 1, L), forced)
            )
        row += count
    # Every similarity is at least 0.05 away from every threshold.
    table = [[rng.choice([0.05, 0.3, 0.5, 0.7, 0.95]) for _ in range(L)] for _ in range(row)]
    return StepBatch(row, units), table


@pytest.mark.parametrize("seed", range(150))
def test_token_scope_is_the_plain_rule(seed: int) -> None:
    batch, table = random_batch(random.Random(seed))
    river = drive(router(), batch, table)
    depths = expected_depths(batch, table, batch_scope=False)
    assert batch.exit_layer.tolist() == depths
    assert river == [expected_rows(batch, depths, layer) for layer in range(L)]


@pytest.mark.parametrize("seed", range(150))
def test_batch_scope_is_the_plain_rule(seed: int) -> None:
    batch, table = random_batch(random.Random(seed))
    batch = StepBatch(batch.num_rows, [u for u in batch.units if not u.forced])
    river = drive(router("batch"), batch, table)
    depths = expected_depths(batch, table, batch_scope=True)
    assert batch.exit_layer.tolist() == depths
    assert river == [expected_rows(batch, depths, layer) for layer in range(L)]
