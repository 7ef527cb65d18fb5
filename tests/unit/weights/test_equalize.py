"""Is a 4-bit weight this backbone's, and with which scales?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from river_vllm.errors import RiverError
from river_vllm.quantization import QUANTIZERS, GroupedWeight
from river_vllm.weights.equalize import matched

N, K, GROUP = 192, 128, 32


def backbone(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(N, K, generator=generator) * 0.02).bfloat16()


def feature_scales(count: int, seed: int) -> torch.Tensor:
    """Between a third and three, as AWQ's search finds them."""
    generator = torch.Generator().manual_seed(seed)
    return 3.0 ** (torch.rand(count, generator=generator) * 2 - 1)


def error(weight: GroupedWeight, wanted: torch.Tensor) -> float:
    return float((weight.dequantize() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize("quantizer", sorted(QUANTIZERS))
@pytest.mark.parametrize("group", [32, 128])
def test_a_plain_quantisation_is_left_as_it_is(quantizer: str, group: int) -> None:
    made = QUANTIZERS[quantizer](backbone(), group)
    assert matched(made, backbone()) is made


@pytest.mark.parametrize("rows", [False, True], ids=["inputs", "inputs and outputs"])
def test_the_scales_of_awq_are_undone(rows: bool) -> None:
    inputs = feature_scales(K, 1)
    outputs = feature_scales(N, 2) if rows else torch.ones(N)
    scaled = backbone().float() * inputs / outputs.unsqueeze(-1)
    made = QUANTIZERS["rtn"](scaled.bfloat16(), GROUP)
    found = matched(made, backbone())
    assert found.input_scales is not None
    # Scales of inputs and outputs are known up to one number that both share.
    ratio = found.input_scales * inputs
    torch.testing.assert_close(ratio / ratio.mean(), torch.ones(K), rtol=0.1, atol=0)
    # As good as with the scales known; without any it is another weight altogether.
    known = replace(made, scales=made.scales * outputs.unsqueeze(-1), input_scales=1 / inputs)
    assert error(found, backbone()) < 1.02 * error(known, backbone())
    assert error(made, backbone()) > 3 * error(found, backbone())


def test_small_scales_are_seen_too() -> None:
    inputs = feature_scales(K, 3) ** 0.25
    made = QUANTIZERS["rtn"]((backbone().float() * inputs).bfloat16(), GROUP)
    found = matched(made, backbone())
    assert found.input_scales is not None
    assert error(found, backbone()) < 0.75 * error(made, backbone())


@pytest.mark.parametrize("other", [backbone(7), -backbone(), backbone() * 0])
def test_another_models_weight_is_refused(other: torch.Tensor) -> None:
    with pytest.raises(RiverError, match="made from another model"):
        matched(QUANTIZERS["rtn"](other, GROUP), backbone())


def test_a_weight_of_zeros_has_no_scales() -> None:
    zero = backbone() * 0
    made = QUANTIZERS["rtn"](zero, GROUP)
    assert matched(made, zero) is made
