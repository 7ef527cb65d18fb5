"""States whose similarities are given, and the exit rule in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from river_vllm.router.batch import StepBatch
from river_vllm.router.plan import Path, RowPlan
from river_vllm.router.router import Agree, Router
from river_vllm.router.signal import SignalName

L = 6
"""Decoder layers."""

Similarities = Sequence[Sequence[float]]
"""``[row][l]``: cosine of the row's states after l − 1 and l layers; entry 0 is not used."""


def router(
    scope: Literal["token", "batch"] = "token",
    agree: Agree | None = None,
    signal: SignalName = "cosine",
) -> Router:
    return Router(L, RowPlan(), scope, "cpu", agree, signal)


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


def drive(
    router: Router, batch: StepBatch, similarities: Similarities, limit: int | None = None
) -> list[set[int]]:
    """Run a step; returns the rows on the river in each layer, as the plan gives them.

    What the router was shown is overwritten afterwards, as the layers of a model do.
    """
    river: list[set[int]] = []
    with router.step(batch, limit):
        for layer, (hidden, residual) in enumerate(states(similarities)):
            router.before_layer(layer, hidden, residual)
            river.append(planned_rows(router, batch.num_rows))
            hidden.fill_(torch.nan)
            residual.fill_(torch.nan)
    return river


def planned_rows(router: Router, num_rows: int) -> set[int]:
    plan = router.plan
    if plan.path is Path.BACKBONE:
        return set()
    if plan.path is Path.RIVER:
        return set(range(num_rows))
    assert plan.river_rows is not None
    assert plan.river_rows.dtype == torch.int64
    rows: list[int] = plan.river_rows.tolist()
    assert rows == sorted(set(rows))
    assert 0 < len(rows) < num_rows, "a plan for all rows or none must say so"
    return set(rows)


def expected_depths(batch: StepBatch, similarities: Similarities, batch_scope: bool) -> list[int]:
    """The exit rule, one unit and one layer at a time."""
    layers = len(similarities[0])

    def would_leave(index: int, layer: int) -> bool:
        unit = batch.units[index]
        if layer < unit.min_layers:
            return False
        if unit.forced or unit.threshold <= -1:
            return True
        rows = range(unit.start, unit.stop)
        return layer > 0 and min(similarities[row][layer] for row in rows) > unit.threshold

    depths = [layers] * len(batch.units)
    for layer in range(layers):
        waiting = [u for u in range(len(batch.units)) if depths[u] == layers]
        leaving = [u for u in waiting if would_leave(u, layer)]
        if not batch_scope or leaving == waiting:
            for unit in leaving:
                depths[unit] = layer
    return depths


def expected_rows(batch: StepBatch, depths: Sequence[int], layer: int) -> set[int]:
    """Rows that are on the river in ``layer``."""
    return {
        row
        for unit, depth in zip(batch.units, depths, strict=True)
        if depth <= layer
        for row in range(unit.start, unit.stop)
    }
