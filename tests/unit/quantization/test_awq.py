"""AWQ's factors: what they are for, and what they are without a reason for any."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from river_vllm.quantization.awq import quantize_awq
from river_vllm.quantization.fit import quantize_fit
from tests.unit.quantization.test_gptq import WEIGHT, output_error

LARGE = slice(None, None, 51)
"""Features whose inputs are thirty times the others'."""


def moment(tokens: int = 1024, seed: int = 0) -> torch.Tensor:
    x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(seed))
    x[:, LARGE] *= 30
    return x.t() @ x / tokens


@pytest.mark.parametrize("whole", [False, True], ids=["real", "whole"])
@pytest.mark.parametrize("group", [32, 128])
def test_outputs_are_closer_than_without_factors(group: int, whole: bool) -> None:
    made = quantize_awq(WEIGHT, group, [moment()], whole)
    unseen = moment(seed=1)
    plain = quantize_fit(WEIGHT, group, whole)
    assert output_error(made, unseen) < 0.5 * output_error(plain, unseen)
    assert not whole or torch.equal(made.zeros, made.zeros.round())


def test_large_inputs_are_made_smaller() -> None:
    made = quantize_awq(WEIGHT, 128, [moment()])
    assert made.inputs is not None
    others = torch.ones(256, dtype=torch.bool)
    others[LARGE] = False
    assert made.inputs[LARGE].max() < 0.5 * made.inputs[others].min()
    # A product rounds them to bfloat16, which must change nothing.
    assert torch.equal(made.inputs.bfloat16().float(), made.inputs)


def test_the_groups_hold_the_scaled_weight() -> None:
    made = quantize_awq(WEIGHT, 64, [moment()])
    assert made.inputs is not None
    scaled = WEIGHT.float() / made.inputs
    held = replace(made, inputs=None).dequantize()
    assert float((held - scaled).norm() / scaled.norm()) < 0.15


def test_moments_in_parts_give_the_same() -> None:
    whole = moment()
    # No moments between the halves, so that both forms know the same.
    whole[:128, 128:] = whole[128:, :128] = 0
    parts = [whole[:128, :128], whole[128:, 128:]]
    ours, expected = (quantize_awq(WEIGHT, 64, given) for given in (parts, [whole]))
    assert torch.equal(ours.codes, expected.codes)
    assert ours.inputs is not None and expected.inputs is not None
    assert torch.equal(ours.inputs, expected.inputs)


def test_inputs_that_are_never_used_do_no_harm() -> None:
    inputs = moment()
    inputs[:10] = inputs[:, :10] = 0
    made = quantize_awq(WEIGHT, 64, [inputs])
    assert torch.isfinite(made.dequantize()).all()
    assert output_error(made, inputs) < output_error(quantize_fit(WEIGHT, 64), inputs)


def test_without_any_input_nothing_is_scaled() -> None:
    made = quantize_awq(WEIGHT, 64, [torch.zeros(256, 256)])
    assert made.inputs is not None and (made.inputs == 1).all()
    assert torch.equal(made.codes, quantize_fit(WEIGHT, 64).codes)
