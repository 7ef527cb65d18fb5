"""GPTQ against a plain loop, and against what it is there to beat."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights import gptq
from river_vllm.weights.gptq import HessianRecorder, block_widths, quantize_gptq
from tests.unit.weights.support import fitted, weights

WEIGHT = weights(24, 256)


def hessian(seed: int = 0, tokens: int = 1024) -> torch.Tensor:
    """Mean ``x xᵀ`` of inputs that correlate, as those of a model do."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(40, 256, generator=generator)
    x = torch.randn(tokens, 40, generator=generator) @ mixing
    x += torch.randn(tokens, 256, generator=generator)
    return x.t() @ x / tokens


def output_error(made: GroupedWeight, inputs: torch.Tensor) -> float:
    """Mean square of the output's error, over inputs with this Hessian."""
    missed = made.dequantize().double() - WEIGHT.double()
    return float(((missed @ inputs.double()) * missed).sum())


def plain_loop(inputs: np.ndarray, grid: GroupedWeight) -> np.ndarray:
    """Algorithm 1 without blocks, in float64: one feature after the other, errors spread at once.

    The inverse is shrunk by a step of elimination for each feature, which is what its Cholesky
    factor stands for.
    """
    weight = WEIGHT.double().numpy().copy()
    damped = inputs + gptq.DAMPING * np.diag(inputs).mean() * np.eye(len(inputs))
    inverse = np.linalg.inv(damped)
    codes = np.zeros(weight.shape, dtype=np.uint8)
    size = grid.group_size
    scales, zeros = grid.scales.double().numpy(), grid.zeros.double().numpy()
    for feature in np.argsort(-np.diag(inputs), kind="stable"):
        scale, zero = scales[:, feature // size], zeros[:, feature // size]
        codes[:, feature] = np.clip(np.round(weight[:, feature] / scale + zero), 0, 15)
        missed = weight[:, feature] - (codes[:, feature] - zero) * scale
        weight -= np.outer(missed, inverse[feature] / inverse[feature, feature])
        inverse -= np.outer(inverse[:, feature], inverse[feature]) / inverse[feature, feature]
        inverse[feature, feature] = 1.0  # done with; its row and column are zero
    return codes


@pytest.mark.parametrize("integer", [False, True], ids=["real", "integer"])
@pytest.mark.parametrize("group", [32, 128])
def test_codes_are_those_of_the_plain_loop(group: int, integer: bool) -> None:
    inputs = hessian()
    made = quantize_gptq(WEIGHT, group, [inputs], integer)
    grid = fitted(WEIGHT, group, integer, inputs.diagonal())
    assert torch.equal(made.scales, grid.scales) and torch.equal(made.zeros, grid.zeros)
    expected = plain_loop(inputs.double().numpy(), grid)
    # Half-way cases fall differently in float32, and each moves the features after it a little.
    differing = (made.codes.numpy() != expected).mean()
    assert differing < 0.02
    assert made.codes.dtype == torch.uint8 and made.codes.is_contiguous()


def test_fewer_tokens_than_features_and_features_that_are_never_used() -> None:
    inputs = hessian(tokens=64)
    inputs[:10] = inputs[:, :10] = 0
    made = quantize_gptq(WEIGHT, 64, [inputs])
    assert torch.isfinite(made.dequantize()).all()
    assert output_error(made, inputs) < output_error(fitted(WEIGHT, 64), inputs)


def test_without_any_input_it_rounds_to_nearest() -> None:
    made = quantize_gptq(WEIGHT, 64, [torch.zeros(256, 256)])
    assert torch.equal(made.codes, fitted(WEIGHT, 64).codes)


def test_blocks_are_taken_by_themselves() -> None:
    inputs = hessian()
    made = quantize_gptq(WEIGHT, 64, [inputs[:128, :128], inputs[128:, 128:]])
    alone = quantize_gptq(WEIGHT[:, 128:], 64, [inputs[128:, 128:]])
    assert torch.equal(made.codes[:, 128:], alone.codes)
    assert torch.equal(made.scales[:, 2:], alone.scales)
    assert torch.equal(made.zeros[:, 2:], alone.zeros)


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
    monkeypatch.setattr(gptq, "WIDEST", 128)
    layer = nn.Linear(256, 2)
    recorder = HessianRecorder({"a": layer})
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    layer(x)
    whole = x.t() @ x / 5
    first, second = recorder.take("a")
    torch.testing.assert_close(first, whole[:128, :128])
    torch.testing.assert_close(second, whole[128:, 128:])
