"""GPTQ against a plain loop, and against what it is there to beat."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights import gptq
from river_vllm.weights.gptq import quantize_gptq
from tests.unit.weights.test_fit import fitted
from tests.unit.weights.test_rtn import weights

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
    grid = fitted(WEIGHT, group, inputs.diagonal(), integer)
    assert torch.equal(made.scales, grid.scales) and torch.equal(made.zeros, grid.zeros)
    expected = plain_loop(inputs.double().numpy(), grid)
    # Half-way cases fall differently in float32, and each moves the features after it a little.
    differing = (made.codes.numpy() != expected).mean()
    assert differing < 0.02
    assert made.codes.dtype == torch.uint8 and made.codes.is_contiguous()


@pytest.mark.parametrize("integer", [False, True], ids=["real", "integer"])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_outputs_are_closer_than_with_the_nearest_codes(group: int, integer: bool) -> None:
    inputs = hessian()
    ours = output_error(quantize_gptq(WEIGHT, group, [inputs], integer), inputs)
    assert torch.equal(inputs, hessian()), "it is not changed"
    nearest = fitted(WEIGHT, group, inputs.diagonal(), integer)
    assert ours < 0.6 * output_error(nearest, inputs)


def test_fewer_tokens_than_features_and_features_that_are_never_used() -> None:
    inputs = hessian(tokens=64)
    inputs[:10] = inputs[:, :10] = 0
    made = quantize_gptq(WEIGHT, 64, [inputs])
    assert torch.isfinite(made.dequantize()).all()
    assert output_error(made, inputs) < output_error(fitted(WEIGHT, 64), inputs)


def test_without_any_input_it_rounds_to_nearest() -> None:
    made = quantize_gptq(WEIGHT, 64, [torch.zeros(256, 256)])
    assert torch.equal(made.codes, fitted(WEIGHT, 64).codes)


@pytest.mark.parametrize("block", [1, 48, 256])
def test_the_block_size_hardly_changes_a_code(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = hessian()
    expected = quantize_gptq(WEIGHT, 64, [inputs]).codes
    monkeypatch.setattr(gptq, "BLOCK", block)
    # Sums in another order: half-way cases.
    found = quantize_gptq(WEIGHT, 64, [inputs]).codes
    assert float((found != expected).float().mean()) < 0.02


def test_blocks_are_taken_by_themselves() -> None:
    inputs = hessian()
    made = quantize_gptq(WEIGHT, 64, [inputs[:128, :128], inputs[128:, 128:]])
    alone = quantize_gptq(WEIGHT[:, 128:], 64, [inputs[128:, 128:]])
    assert torch.equal(made.codes[:, 128:], alone.codes)
    assert torch.equal(made.scales[:, 2:], alone.scales)
    assert torch.equal(made.zeros[:, 2:], alone.zeros)
