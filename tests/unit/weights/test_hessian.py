"""Hessians of what modules are given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from river_vllm.weights import hessian
from river_vllm.weights.hessian import HessianRecorder, block_widths


def test_the_mean_over_all_tokens_of_all_calls() -> None:
    first, second = nn.Linear(4, 2), nn.Linear(6, 2)
    recorder = HessianRecorder({"a": first, "b": second})
    generator = torch.Generator().manual_seed(0)
    calls = [torch.randn(n, 4, generator=generator).bfloat16() for n in (3, 1, 5)]
    for x in calls:
        first(x.float())
    second(torch.ones(2, 3, 6))
    assert recorder.tokens == 6
    x = torch.cat(calls).float()
    (found,) = recorder.take("a")
    torch.testing.assert_close(found, x.t() @ x / 9)
    torch.testing.assert_close(recorder.take("b"), [torch.ones(6, 6)])


def test_bfloat16_inputs_lose_nothing() -> None:
    module = nn.Linear(256, 2).bfloat16()
    recorder = HessianRecorder({"a": module})
    x = torch.randn(300, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    module(x)
    exact = x.double().t() @ x.double() / 300
    error = (recorder.take("a")[0].double() - exact).norm() / exact.norm()
    assert float(error) < 1e-5, "float32 sums; bfloat16 ones would be off by a thousandth"
    assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"


def test_after_closing_nothing_is_added() -> None:
    module = nn.Linear(4, 2)
    recorder = HessianRecorder({"a": module})
    module(torch.ones(2, 4))
    recorder.close()
    module(torch.full((2, 4), 9.0))
    assert torch.equal(recorder.take("a")[0], torch.ones(4, 4))


@pytest.mark.parametrize(
    ("width", "expected"),
    [(576, [576]), (4608, [4608]), (4864, [4864]), (8960, [4480, 4480]), (13824, [4608] * 3)],
)
def test_blocks_of_wide_inputs_begin_with_a_group(width: int, expected: list[int]) -> None:
    assert block_widths(width) == expected
    odd = block_widths(width + 32)
    assert sum(odd) == width + 32 and all(part % 128 == 0 for part in odd[:-1])


def test_blocks_are_those_of_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hessian, "WIDEST", 128)
    layer = nn.Linear(256, 2)
    recorder = HessianRecorder({"a": layer})
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    layer(x)
    whole = x.t() @ x / 5
    first, second = recorder.take("a")
    torch.testing.assert_close(first, whole[:128, :128])
    torch.testing.assert_close(second, whole[128:, 128:])
