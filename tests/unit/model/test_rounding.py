"""With how many rows a product gives a row the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from river_vllm.model.rounding import alike

WEIGHT = torch.randn(192, 64, generator=torch.Generator().manual_seed(1)).bfloat16()


def product(shift: Callable[[int], float]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A product of each row by itself, plus ``shift`` of the number of rows in one output."""

    def run(x: torch.Tensor) -> torch.Tensor:
        rows = torch.stack([(WEIGHT.float() * row.float()).sum(dim=1) for row in x])
        rows[:, 7] += shift(len(x))
        return rows.bfloat16()

    return run


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (lambda _: 0.0, (1, 256)),
        (lambda rows: 4.0 if rows == 1 else 0.0, (2, 256)),
        (lambda rows: 4.0 if rows < 5 else 0.0, (5, 256)),
        (lambda rows: 4.0 if rows > 32 else 0.0, (1, 32)),
        (lambda rows: 4.0 if rows == 1 or rows > 64 else 0.0, (2, 64)),
        (float, (5, 5)),
    ],
)
def test_how_many_rows_are_alike(shift: Callable[[int], float], expected: tuple[int, int]) -> None:
    assert alike(product(shift), 64, 192, torch.bfloat16) == expected
