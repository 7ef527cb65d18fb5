"""Whether the bits of a row depend on the number of rows that a product multiplies at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

SIZES = (1, 2, 5, 16, 32, 64, 256)
"""Numbers of rows that are compared."""
FEW = 5
"""Rows to which a pass is padded at most: they take as long as one, for weights are read once."""
ELEMENTS = 1 << 16
"""Outputs that are compared for each of ``SIZES``: another order of summation changes about one
bf16 output in two thousand."""


class Alike(NamedTuple):
    """Numbers of rows, ``FEW`` among them, with which a row has the same bits.

    ``most`` is the last of ``SIZES`` where no number of rows from ``least`` on changes a bit.
    """

    least: int
    most: int


def alike(
    product: Callable[[torch.Tensor], torch.Tensor], width: int, outputs: int, dtype: torch.dtype
) -> Alike:
    """The numbers of rows with which ``product`` gives a row the same bits.

    oneDNN sums one row in other blocks of input features than several, or many in others than few.

    Args:
        product: ``[rows, width] -> [rows, outputs]``, of ``dtype``.
    """
    count = min(SIZES[-1], max(FEW, -(-ELEMENTS // outputs)))
    x = torch.randn(2 * SIZES[-1], width, generator=torch.Generator().manual_seed(0)).to(dtype)

    def by(size: int) -> torch.Tensor:
        whole = -(-count // size) * size
        return torch.cat([product(rows) for rows in x[:whole].split(size)])[:count]

    expected = by(FEW)
    same = [torch.equal(by(size), expected) for size in SIZES]
    least = most = SIZES.index(FEW)
    while least and same[least - 1]:
        least -= 1
    while most < len(SIZES) - 1 and same[most + 1]:
        most += 1
    return Alike(SIZES[least], SIZES[most])


def common(found: list[Alike]) -> Alike:
    """The numbers of rows with which all products give a row the same bits."""
    return Alike(max(one.least for one in found), min(one.most for one in found))
