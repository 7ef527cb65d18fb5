"""Round to nearest against a plain loop over groups and codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from river_vllm.weights.rtn import quantize_rtn


def weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Groups of different widths and offsets, as bf16."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns // 32, 32, generator=generator)
    scale = torch.rand(rows, columns // 32, 1, generator=generator) * 3
    offset = torch.randn(rows, columns // 32, 1, generator=generator)
    return (values * scale + offset).view(rows, columns).bfloat16()


@pytest.mark.parametrize("group", [32, 64, 128])
def test_every_code_is_the_nearest_point_of_its_groups_grid(group: int) -> None:
    weight = weights(6, 256)
    packed = quantize_rtn(weight, group)
    assert packed.codes.shape == (6, 256) and packed.codes.dtype == torch.uint8
    assert packed.scales.shape == packed.zeros.shape == (6, 256 // group)
    assert packed.group_size == group
    values = weight.double().numpy()
    for row in range(6):
        for g in range(256 // group):
            span = slice(g * group, (g + 1) * group)
            w = values[row, span]
            low, high = min(w.min(), 0.0), max(w.max(), 0.0)
            scale, zero = float(packed.scales[row, g]), float(packed.zeros[row, g])
            # bfloat16 has eight significant bits, so rounding moves a scale by at most 2^-9.
            assert scale == pytest.approx((high - low) / 15, rel=2**-8)
            assert zero == np.clip(np.round(-low / scale), 0, 15)
            grid = (np.arange(16) - zero) * scale
            nearest = np.abs(w[:, None] - grid).min(axis=1)
            chosen = np.abs(w - grid[packed.codes[row, span].numpy()])
            # Codes are found in float32: half-way points may fall to either side.
            np.testing.assert_allclose(chosen, nearest, atol=1e-5 * scale, rtol=1e-5)


def test_weights_on_a_grid_come_back_exactly() -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, (8, 4, 32), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 15
    zeros = torch.randint(0, 16, (8, 4, 1), generator=generator)
    scales = 2.0 ** torch.randint(-8, 3, (8, 4, 1), generator=generator)
    weight = ((codes - zeros) * scales).view(8, 128)
    packed = quantize_rtn(weight, 32)
    assert torch.equal(packed.dequantize(), weight)
    assert torch.equal(packed.codes.view(8, 4, 32), codes.to(torch.uint8))
