"""Every format gives back the weight that its tool's packing put in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from river_vllm.errors import RiverError
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights.formats import CheckpointFolder, format_of, own_config, own_tensors
from river_vllm.weights.quantizers import QUANTIZERS
from tests.support import quantized
from tests.unit.weights.support import weights

NAME = "model.layers.0.mlp.up_proj"


def read(folder: Path) -> GroupedWeight:
    checkpoint = CheckpointFolder(folder)
    return format_of(checkpoint).read(checkpoint, NAME)


def assert_same(found: GroupedWeight, expected: GroupedWeight) -> None:
    assert torch.equal(found.codes, expected.codes) and found.codes.dtype == torch.uint8
    assert torch.equal(found.scales, expected.scales) and found.scales.dtype == torch.float32
    assert torch.equal(found.zeros, expected.zeros) and found.zeros.dtype == torch.float32
    assert found.codes.is_contiguous()


def test_what_was_packed_is_read(tmp_path: Path) -> None:
    weight = QUANTIZERS["rtn"](weights(24, 128), 32)
    tensors = quantized.compressed_tensors(NAME, weight)
    quantized.write(tmp_path, tensors, {}, quantized.compressed_tensors_config(32))
    assert_same(read(tmp_path), weight)


@pytest.mark.parametrize("channel", [False, True])
def test_symmetric_compressed_tensors(channel: bool, tmp_path: Path) -> None:
    made = QUANTIZERS["rtn"](weights(24, 128), 32)
    scales = made.scales[:, :1] if channel else made.scales
    weight = GroupedWeight(made.codes, scales, torch.full_like(scales, 8.0))
    tensors = quantized.compressed_tensors(NAME, weight)
    del tensors[f"{NAME}.weight_zero_point"]
    config = quantized.compressed_tensors_config(32)
    config["config_groups"]["group_0"]["weights"]["symmetric"] = True
    if channel:
        config["config_groups"]["group_0"]["weights"]["strategy"] = "channel"
    quantized.write(tmp_path, tensors, {}, config)
    assert_same(read(tmp_path), weight)
    assert format_of(CheckpointFolder(tmp_path)).group_size == (-1 if channel else 32)


@pytest.mark.parametrize("integer", [False, True])
def test_rivers_own_keeps_zero_points_as_they_are(integer: bool, tmp_path: Path) -> None:
    weight = QUANTIZERS["hqq"](weights(24, 128), 32, integer_zeros=integer)
    quantized.write(tmp_path, own_tensors(NAME, weight), {}, own_config(32, integer))
    assert_same(read(tmp_path), weight)
    assert format_of(CheckpointFolder(tmp_path)).integer_zeros is integer


def test_rivers_own_notices_a_changed_value(tmp_path: Path) -> None:
    tensors = own_tensors(NAME, QUANTIZERS["hqq"](weights(24, 128), 32))
    tensors[f"{NAME}.codes"][3, 3] ^= 1
    quantized.write(tmp_path, tensors, {}, own_config(32, False))
    with pytest.raises(RiverError, match=f"'{NAME}.codes' in .*checksum"):
        read(tmp_path)


def test_groups_in_another_order_are_refused(tmp_path: Path) -> None:
    tensors = quantized.compressed_tensors(NAME, QUANTIZERS["rtn"](weights(24, 128), 32))
    tensors[f"{NAME}.weight_g_idx"] = torch.arange(128, dtype=torch.int32).flip(0) // 32
    quantized.write(tmp_path, tensors, {}, quantized.compressed_tensors_config(32))
    with pytest.raises(RiverError, match=r"g_idx' in .*act-order"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "not a quantised checkpoint"),
        ({"quant_method": "awq"}, "quant_method = 'awq' (allowed: 'compressed-tensors'"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "'format' ="),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "'config_groups'"),
        ({**own_config(32, False), "format": 99}, "'format' = 99 (allowed: 1)"),
        ({**own_config(32, False), "quantizer": "awq"}, "'quantizer' = 'awq' (allowed: 'gptq')"),
    ],
    ids=str,
)
def test_what_is_not_read_is_said(config: Any, words: str, tmp_path: Path) -> None:
    quantized.write(tmp_path, {"a": torch.zeros(1)}, {}, config)
    with pytest.raises(RiverError) as error:
        format_of(CheckpointFolder(tmp_path))
    assert words in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda scales: scales[:-8].contiguous(), r"packed' in .*shape \(16, 4\).*24 x 128"),
        (lambda scales: scales * float("inf"), r"packed' in .*not a finite number"),
        (None, f"no tensor '{NAME}"),
    ],
)
def test_tensors_that_are_no_weight_are_named(change: Any, words: str, tmp_path: Path) -> None:
    tensors = quantized.compressed_tensors(NAME, QUANTIZERS["rtn"](weights(24, 128), 32))
    if change is None:
        tensors = {"a": torch.zeros(1)}
    else:
        tensors[f"{NAME}.weight_scale"] = change(tensors[f"{NAME}.weight_scale"])
    quantized.write(tmp_path, tensors, {}, quantized.compressed_tensors_config(32))
    with pytest.raises(RiverError, match=words):
        read(tmp_path)


@pytest.mark.parametrize("damage", ["config", "json", "none", "cut"])
def test_folders_that_are_no_checkpoint(damage: str, tmp_path: Path) -> None:
    quantized.write(tmp_path, {"a": torch.zeros(64)}, {}, None)
    config, file = tmp_path / "config.json", tmp_path / "model.safetensors"
    if damage == "config":
        config.unlink()
    elif damage == "json":
        config.write_text("{")
    elif damage == "none":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(RiverError, match=str(tmp_path)):
        CheckpointFolder(tmp_path)
