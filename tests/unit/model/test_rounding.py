"""From how many rows on a product gives a row the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from river_vllm.model.rounding import least_alike

WEIGHT = torch.randn(192, 64, generator=torch.Generator().manual_seed(1)).bfloat16()


def product(shift: Callable[[int], float]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A product of each row by itself, plus ``shift`` of the number of rows in one output."""

    def run(x: torch.Tensor) -> torch.Tensor:
        rows = torch.stack([(WEIGHT.float() * row.float()).sum(dim=1) for row in x])
        rows[:, 7] += shift(len(x))
        return rows.bfloat16()

    return run


@pytest.mark.parametrize(
    ("shift", "least"),
    [
        (lambda _: 0.0, 1),
        (lambda rows: 4.0 if rows == 1 else 0.0, 2),
        (lambda rows: 4.0 if rows < 5 else 0.0, 5),
        (lambda rows: 4.0 if rows < 16 else 0.0, None),
        (lambda rows: 4.0 if rows > 64 else 0.0, None),
        (float, None),
    ],
)
def test_the_least_number_from_which_on_rows_are_alike(
    shift: Callable[[int], float], least: int | None
) -> None:
    assert least_alike(product(shift), 64, 192, torch.bfloat16) == least
