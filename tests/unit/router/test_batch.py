"""A step's units as arrays."""

from __future__ import annotations

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


def test_offsets_move_the_threshold_of_their_layer() -> None:
    batch = StepBatch(2, [ExitUnit(0, 1, 0.5, 1, offsets=(0.25, -0.5)), ExitUnit(1, 2, 0.75, 1)])
    assert batch.threshold_after(1).tolist() == [0.75, 0.75]
    assert batch.threshold_after(2).tolist() == [0.0, 0.75]
    plain = StepBatch(1, [ExitUnit(0, 1, 0.5, 1)])
    assert plain.threshold_after(1).tolist() == [0.5]
