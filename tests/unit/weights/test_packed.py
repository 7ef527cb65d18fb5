"""A packed weight as bytes: what went in comes out, and nothing else ever does."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from river_vllm.errors import RiverError
from river_vllm.weights import packed
from river_vllm.weights.packed import digest, from_bytes, pack_codes, to_bytes, unpack_codes
from river_vllm.weights.quantizers import QUANTIZERS, GroupedWeight
from tests.unit.weights.test_rtn import weights


def grouped(quantizer: str = "hqq") -> GroupedWeight:
    return QUANTIZERS[quantizer](weights(16, 128), 32)


@pytest.mark.parametrize("quantizer", sorted(QUANTIZERS))
def test_what_was_saved_comes_back_to_the_bit(quantizer: str) -> None:
    weight = grouped(quantizer)
    back = from_bytes(to_bytes(weight, "k"), "k")
    for name in ("codes", "scales", "zeros"):
        before, after = getattr(weight, name), getattr(back, name)
        assert before.dtype == after.dtype and torch.equal(before, after)


def test_two_codes_take_a_byte() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(2, 4)
    assert pack_codes(codes)[0, :3].tolist() == [0x10, 0x32, 0x54]
    assert torch.equal(unpack_codes(pack_codes(codes)), codes)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9, 0.999])
def test_any_changed_byte_is_noticed(where: float) -> None:
    data = bytearray(to_bytes(grouped(), "k"))
    data[int(where * len(data))] ^= 1
    with pytest.raises(RiverError):
        from_bytes(bytes(data), "k")


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_file_that_is_cut_off_or_under_another_name_is_noticed(length: int) -> None:
    data = to_bytes(grouped(), "k")
    with pytest.raises(RiverError):
        from_bytes(data[:length], "k")
    with pytest.raises(RiverError, match="checksum"):
        from_bytes(data, "other")


MADE = grouped()


@pytest.mark.parametrize(
    "weight",
    [
        GroupedWeight(MADE.codes, MADE.scales, MADE.zeros[:, :1]),
        GroupedWeight(MADE.codes, MADE.scales[:8], MADE.zeros[:8]),
        GroupedWeight(MADE.codes, MADE.scales[:, :0], MADE.zeros[:, :0]),
        GroupedWeight(MADE.codes, MADE.scales[:, :3], MADE.zeros[:, :3]),
        GroupedWeight(MADE.codes, MADE.scales, MADE.zeros.double()),
        GroupedWeight(MADE.codes.int(), MADE.scales, MADE.zeros),
    ],
    ids=["zeros", "rows", "no group", "uneven", "float64", "int32"],
)
def test_a_file_that_was_made_on_purpose_is_no_weight(weight: GroupedWeight) -> None:
    """Its checksum is right, and kernels would read past its end."""
    tensors = {"codes": pack_codes(weight.codes), "scales": weight.scales.bfloat16()}
    tensors["zeros"] = weight.zeros.clone()
    tensors["checksum"] = packed._checksum(tensors, "k")
    with pytest.raises(RiverError, match="scales"):
        from_bytes(save(tensors), "k")


def test_a_digest_is_of_values_shape_and_type() -> None:
    weight = weights(8, 64)
    changed = weight.clone()
    changed[3, 5] += 1
    seen = {digest(w) for w in (weight, changed, weight.view(4, 128), weight.half())}
    assert len(seen) == 4
    assert digest(weight.clone()) == digest(weight)
    assert digest(weight.t().contiguous().t()) == digest(weight)
