"""Which small operators an uncompiled step may take from vLLM's C++ library."""

from __future__ import annotations

import pytest
import torch
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding

from river_vllm.layers.eager_ops import use_eager_ops
from river_vllm.router.plan import RowPlan

pytestmark = pytest.mark.usefixtures("vllm_world")

HEAD = 32


@pytest.mark.parametrize("rotary", [16, 32, 24, 8])
def test_rotary_embedding_of_every_width(rotary: int) -> None:
    """The C++ operator writes past the end where a half is no multiple of 8 wide."""
    module = RotaryEmbedding(HEAD, rotary, 64, 10000.0, True, torch.bfloat16)
    module._forward_method = module.forward_native
    positions = torch.arange(5)
    query, key = torch.randn(5, 4 * HEAD).bfloat16(), torch.randn(5, HEAD).bfloat16()
    expected = module(positions, query.clone(), key.clone())
    plan = RowPlan()
    use_eager_ops(module, plan)
    plan.free = True
    found = module(positions, query.clone(), key.clone())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.05)  # bf16 against float32 inside
    assert (module._forward_method != module.forward_native) == (rotary % 16 == 0)
