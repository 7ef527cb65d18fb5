"""The native look at a step's states against torch's operators."""

from __future__ import annotations

import pytest
import torch

from river_vllm.kernels.native.kernel import Backend
from river_vllm.step.router import Reading, by_torch, transition_similarity
from tests.unit.kernels.support import every_backend, scalar_backend

pytestmark = every_backend

BY_TORCH = by_torch(transition_similarity)


@pytest.fixture
def native(backend: Backend) -> Reading:
    return backend.transition


def states(rows: int, seed: int, width: int = 576) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator).bfloat16()


@pytest.mark.parametrize("rows", [1, 3, 64, 200])
@pytest.mark.parametrize("width", [576, 1001])
@pytest.mark.parametrize("added", [True, False])
def test_it_reads_what_torch_reads(native: Reading, rows: int, width: int, added: bool) -> None:
    hidden, residual = states(rows, 0, width), states(rows, 1, width) if added else None
    before = hidden.float() + 0.5 * states(rows, 2, width).float()
    after, similarity = native(before, hidden, residual)
    expected_after, expected = BY_TORCH(before, hidden, residual)
    assert torch.equal(after, expected_after)
    assert expected is not None
    # Sums of a thousand products in float32, in another order.
    torch.testing.assert_close(similarity, expected, rtol=1e-5, atol=1e-6)
    assert 0.3 < float(expected.mean()) < 0.95
    plain_after, plain = scalar_backend().transition(before, hidden, residual)
    assert plain is not None and similarity is not None
    assert torch.equal(after, plain_after)
    assert torch.equal(similarity, plain)


def test_without_a_state_before_there_is_no_similarity(native: Reading) -> None:
    hidden, residual = states(2, 0), states(2, 1)
    after, similarity = native(None, hidden, residual)
    assert similarity is None
    assert torch.equal(after, (hidden + residual).float())


def test_sums_are_rounded_as_the_model_rounds_them(native: Reading) -> None:
    """Every bf16 number beside a few others: ties, subnormals, infinities, overflow."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    hidden = every.view(64, 1024)
    for other in (0.0, 1.0, -1.0, 2.0**-130, 3e38, float("inf"), 1.0 + 2.0**-7):
        residual = torch.full_like(hidden, other)
        after, _ = native(None, hidden, residual)
        torch.testing.assert_close(
            after, (hidden + residual).float(), rtol=0, atol=0, equal_nan=True
        )


def test_rounding_never_lifts_it_above_one(native: Reading) -> None:
    before = states(4096, 3)
    _, similarity = native(before.float(), before * 4, None)
    assert similarity is not None
    assert float(similarity.max()) <= 1.0
    assert float(similarity.min()) > 1.0 - 1e-5


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_state_that_is_zero_or_not_finite_has_none(native: Reading, bad: float) -> None:
    good = states(2, 4)
    broken = good.clone()
    broken[1] = bad
    for before, after in ((good, broken), (broken, good)):
        _, similarity = native(before.float(), after, None)
        assert similarity is not None
        assert similarity.isnan().tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("other", ["hidden", "residual", "both"])
def test_states_of_another_type_are_read_by_torch(
    native: Reading, dtype: torch.dtype, other: str
) -> None:
    """Some models keep their residual stream in float32: its bytes are not bfloat16's."""
    hidden, residual, before = states(5, 11), states(5, 12), states(5, 13).float()
    hidden = hidden if other == "residual" else hidden.to(dtype)
    residual = residual if other == "hidden" else residual.to(dtype)
    for stream in (residual, None):
        for old in (before, None):
            found, expected = native(old, hidden, stream), BY_TORCH(old, hidden, stream)
            for one, same in zip(found, expected, strict=True):
                assert (one is None) == (same is None)
                if one is not None and same is not None:
                    torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-6)
