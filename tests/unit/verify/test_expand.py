"""A request's sampling settings, once for each of its drafted tokens."""

from __future__ import annotations

import pytest
import torch
from vllm.platforms import current_platform
from vllm.utils import cpu_triton_utils

from river_vllm.verify.expand import expand_batch_to_tokens

ENDS = torch.tensor([2, 2, 3, 6], dtype=torch.int32)
EXPECTED = [0, 0, 2, 3, 3, 3]
"""The request that each token belongs to; the second request has none."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_each_token_gets_its_requests_value(dtype: torch.dtype) -> None:
    x = torch.tensor([0.75, 5, 40, 0.5]).to(dtype)
    found = expand_batch_to_tokens(x, ENDS, 6, replace_from=-1)
    assert found.dtype == dtype
    assert found.tolist() == x[EXPECTED].tolist()


def test_a_value_can_be_replaced() -> None:
    x = torch.tensor([0.8, 0.5, 0.0, 1.25])
    found = expand_batch_to_tokens(x, ENDS, 6, replace_from=0, replace_to=1)
    assert found.tolist() == torch.tensor([0.8, 0.8, 1.0, 1.25, 1.25, 1.25]).tolist()


def test_vllms_own_is_still_wrong() -> None:
    """When this fails, ``river_vllm/verify/expand.py`` can go."""
    current_platform.import_kernels()
    own = torch.zeros(6)
    cpu_triton_utils._expand_kernel_impl(own, torch.tensor([0.75, 5.0, 40.5, 0.5]), ENDS, 0, 0)
    assert own.tolist() == [0.0] * 6
