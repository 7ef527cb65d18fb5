"""The search for the candidates whose logits are made exact."""

from __future__ import annotations

import pytest
import torch

from river_vllm.layers.river_head import DEEP, largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [40, 64 * DEEP, 200 * DEEP + 7, 3000 * DEEP - 1])
@pytest.mark.parametrize("rows", [1, 5])
def test_it_finds_what_a_search_of_everything_finds(
    rows: int, size: int, dtype: torch.dtype
) -> None:
    logits = torch.randn(rows, size, generator=torch.Generator().manual_seed(size)).to(dtype)
    found = largest(logits, 32)
    assert found.shape == (rows, 32)
    assert all(len(set(row)) == 32 for row in found.tolist())
    # bf16 has ties, and either of two equal logits may be taken.
    assert torch.equal(logits.gather(1, found), logits.topk(32, dim=-1).values)


def test_the_largest_may_share_a_column_or_lie_at_the_end() -> None:
    columns = 200
    logits = torch.zeros(1, columns * DEEP + 3)
    wanted = [7, 7 + columns, 7 + 5 * columns, columns * DEEP + 2]
    logits[0, wanted] = 1.0
    assert sorted(largest(logits, 4).tolist()[0]) == wanted
