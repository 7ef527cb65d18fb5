"""A step's units as arrays."""

from __future__ import annotations

import numpy as np
import torch

from river_vllm.router.batch import ExitUnit, StepBatch


def test_arrays_follow_the_units() -> None:
    batch = StepBatch(
        4,
        [
            ExitUnit(0, 3, 0.5, 2),
            ExitUnit(3, 4, 0.75, 1, forced=True),
        ],
    )
    assert batch.threshold.tolist() == [0.5, 0.75]
    assert batch.min_layers.tolist() == [2, 1]
    assert batch.unconditional.tolist() == [False, True]
    assert batch.exit_layer.tolist() == [-1, -1]
    assert [unit.rows for unit in batch.units] == [3, 1]


def test_the_lowest_threshold_needs_no_measurement() -> None:
    assert StepBatch(1, [ExitUnit(0, 1, -1.0, 1)]).unconditional.tolist() == [True]


def test_rows_outside_every_unit_are_noticed() -> None:
    assert StepBatch(3, [ExitUnit(0, 2, 0.5, 1), ExitUnit(2, 3, 0.5, 1)]).covers_all_rows
    assert not StepBatch(4, [ExitUnit(0, 2, 0.5, 1), ExitUnit(2, 3, 0.5, 1)]).covers_all_rows
    assert not StepBatch(2, []).covers_all_rows


def test_offsets_are_those_of_the_units_that_have_any() -> None:
    batch = StepBatch(2, [ExitUnit(0, 1, 0.5, 1, offsets=(0.25, -0.5)), ExitUnit(1, 2, 0.75, 1)])
    assert batch.offsets is not None
    assert batch.offsets.tolist() == [[0.25, -0.5], [0.0, 0.0]]
    assert StepBatch(1, [ExitUnit(0, 1, 0.5, 1)]).offsets is None


def test_rows_of_some_units() -> None:
    units = [ExitUnit(1, 3, 0.5, 1), ExitUnit(4, 5, 0.5, 1), ExitUnit(5, 7, 0.5, 1)]
    batch = StepBatch(8, units)
    assert batch.rows_of(np.array([0, 2]), torch.device("cpu")).tolist() == [1, 2, 5, 6]
    nobody = batch.rows_of(np.empty(0, dtype=np.intp), torch.device("cpu"))
    assert (nobody.dtype, len(nobody)) == (torch.int64, 0)
