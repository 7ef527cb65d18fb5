"""The row plan between the router and the linears."""

from __future__ import annotations

import torch

from river_vllm.router.plan import Path, RowPlan


def test_a_new_plan_is_on_the_backbone() -> None:
    assert RowPlan().path is Path.BACKBONE


def test_rows_are_there_in_a_mixed_plan_only() -> None:
    plan, rows = RowPlan(), torch.tensor([1, 3])
    plan.mixed(rows)
    assert (plan.path, plan.river_rows) == (Path.MIXED, rows)
    plan.all_river()
    assert (plan.path, plan.river_rows) == (Path.RIVER, None)
    plan.mixed(rows)
    plan.reset()
    assert (plan.path, plan.river_rows) == (Path.BACKBONE, None)
