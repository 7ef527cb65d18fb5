"""Which rows run again, and how they are packed."""

from __future__ import annotations

from river_vllm.request import RiverSettings
from river_vllm.router.batch import ExitUnit, StepBatch
from river_vllm.worker.split import sub_step
from tests.unit.worker.support import rows

SETTINGS = RiverSettings(True, 0.5, 1)


def test_rows_without_units_are_left_out() -> None:
    requests = [
        rows("prompt", 4, 0, prompt=9, start=0, settings=SETTINGS),
        rows("exits", 1, 9, prompt=9, start=4, settings=SETTINGS),
        rows("exact", 1, 9, prompt=9, start=5, settings=SETTINGS),
        rows("exits too", 1, 20, prompt=9, start=6, settings=SETTINGS),
    ]
    batch = StepBatch(7, [ExitUnit(4, 5, 0.5, 1), ExitUnit(6, 7, 0.9, 2)])
    part = sub_step(batch, requests)
    assert part.rows.tolist() == [4, 6]
    assert part.requests.tolist() == [1, 3]
    assert part.starts.tolist() == [0, 1, 2]
    assert part.batch.units == [ExitUnit(0, 1, 0.5, 1), ExitUnit(1, 2, 0.9, 2)]
    assert part.batch.covers_all_rows


def test_a_request_is_taken_from_its_first_unit_to_its_end() -> None:
    """A replay can hold a token that never left between two that did."""
    requests = [
        rows("exact", 2, 0, prompt=9, start=0, settings=SETTINGS),
        rows("resumed", 6, 6, prompt=8, start=2, settings=SETTINGS),
    ]
    batch = StepBatch(
        8, [ExitUnit(4, 5, -1.0, 3, forced=True), ExitUnit(6, 7, -1.0, 2, forced=True)]
    )
    part = sub_step(batch, requests)
    assert part.rows.tolist() == [4, 5, 6, 7]
    assert part.requests.tolist() == [1]
    assert part.starts.tolist() == [0, 4]
    assert [(u.start, u.stop, u.min_layers) for u in part.batch.units] == [(0, 1, 3), (2, 3, 2)]
    assert not part.batch.covers_all_rows
