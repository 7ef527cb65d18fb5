"""Verified mode in a worker: all rows are the backbone's, the rest is the drafter's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from river_vllm.modes.verified_worker import VerifiedWorker


def test_it_runs_the_backbone_and_hands_on_to_the_drafter() -> None:
    asked: list[Any] = []
    drafter = SimpleNamespace(
        forget=lambda ids: asked.append(("forget", ids)),
        took=lambda rows, seconds: asked.append((rows, seconds)),
        measure_costs=lambda: asked.append("measure"),
        info=lambda: {"verify": "info"},
    )
    runner: Any = SimpleNamespace(
        drafter=drafter,
        get_model=lambda: SimpleNamespace(river=SimpleNamespace(num_layers=12)),
        input_batch=SimpleNamespace(num_reqs=2),
        query_start_loc=SimpleNamespace(np=np.array([0, 4, 5, 99])),
    )
    mode = VerifiedWorker(runner)
    table = mode.table()
    assert (table.num_rows, table.free.any(), table.head) == (5, False, "backbone")
    assert mode.depths(table) == []
    mode.took(table, 0.5)
    mode.forget(["a"])
    mode.measure()
    assert asked == [(5, 0.5), ("forget", ["a"]), "measure"]
    assert mode.info() == {"verify": "info"}
