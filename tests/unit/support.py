"""Steps whose similarities are given, and the exit rule in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from river_vllm.step.criterion import CRITERION, by_torch
from river_vllm.step.router import Broadcast, Router
from river_vllm.step.table import Path, StepTable

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
