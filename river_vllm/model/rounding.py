"""Whether the bits of a row depend on the number of rows that a product multiplies at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

SIZES = (1, 2, 5, 16, 64, 256)
"""Numbers of rows that are compared."""
MOST = 5
"""Rows to which a pass is padded at most: they take as long as one, for weights are read once."""
ELEMENTS = 1 << 16
"""Outputs that are compared for each of ``SIZES``: another order of summation changes about one
bf16 output in two thousand."""


def least_alike(
    product: Callable[[torch.Tensor], torch.Tensor], width: int, outputs: int, dtype: torch.dtype
) -> int | None:
    """The number of rows from which on ``product`` gives a row the same bits, however many there
    are; None where that takes more than ``MOST``.

    oneDNN sums a lone row in other blocks of input features than several rows.

    Args:
        product: ``[rows, width] -> [rows, outputs]``, of ``dtype``.
    """
    x = torch.randn(SIZES[-1], width, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected, found = product(x), None
    for size in reversed(SIZES[:-1]):
        parts = min(len(x) // size, -(-ELEMENTS // (outputs * size)))
        rows = torch.cat([product(part) for part in x[: parts * size].split(size)])
        if not torch.equal(rows, expected[: len(rows)]):
            break
        found = size
    return found if found is not None and found <= MOST else None
