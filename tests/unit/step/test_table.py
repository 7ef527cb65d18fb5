"""A step's table: who has left, who runs where, and the part of it that is run again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from river_vllm.step.table import Path, StepTable
from tests.unit.support import L, tokens

NEVER = 1 << 30


def test_rows_leave_one_after_the_other() -> None:
    table = StepTable(L, [2, 1, 1], [0.5] * 3, [1] * 3)
    table.leave(np.array([False, True, False]), 1)
    assert table.path is Path.MIXED
    assert table.river_rows is not None and table.river_rows.tolist() == [2]
    table.leave(np.array([True, False]), 3)
    assert table.river_rows.tolist() == [0, 1, 2]
    table.leave(np.array([True]), 4)
    assert (table.path, table.river_rows, table.has_active) == (Path.RIVER, None, False)
    assert table.exit_layer.tolist() == [3, 1, 4]


def test_who_never_leaves_stays_on_the_backbone_to_the_limit() -> None:
    table = StepTable(L, [1, 2], [0.5, 1.0], [1, NEVER])
    assert table.free.tolist() == [True, False]
    table.leave(np.array([True]), 2)
    assert table.path is Path.MIXED
    assert not table.has_active
    table.close()
    assert table.exit_layer.tolist() == [2, L]
    assert (table.path, table.river_rows) == (Path.BACKBONE, None)


@pytest.mark.parametrize("shape", [(4, 3), (1, 4, 3)])
def test_where_rows_are_on_both_paths_the_backbone_runs_over_all(shape: tuple[int, ...]) -> None:
    """vLLM's Transformers backend puts a dimension of one before the rows."""
    table = tokens(*[0.5] * 4)
    table.leave(np.array([False, True, False, True]), 1)
    x = torch.arange(12.0).view(shape)
    given: list[list[int]] = []

    def times(factor: float, rows: torch.Tensor) -> torch.Tensor:
        given.append(list(rows.shape))
        return rows * factor

    out = table.mixed(x, lambda rows: times(2, rows), lambda rows: times(-1, rows))
    assert given == [list(shape), [2, 3]]
    factors = torch.tensor([[2.0], [-1.0], [2.0], [-1.0]])
    assert torch.equal(out, x.view(4, 3) * factors)


def test_some_of_its_groups_are_a_table_of_their_own() -> None:
    table = StepTable(
        L,
        rows=[4, 1, 2],
        threshold=[1.0, 0.5, -1.0],
        floor=[NEVER, 1, 3],
        replayed=[0, 0, 1],
        request=[0, 1, 3],
        scope="batch",
    )
    some = table.only(np.array([False, True, True]))
    assert (some.rows.tolist(), some.request.tolist()) == ([1, 2], [1, 3])
    assert (some.threshold.tolist(), some.floor.tolist()) == ([0.5, -1], [1, 3])
    assert (some.replayed.tolist(), some.scope) == ([False, True], "batch")
