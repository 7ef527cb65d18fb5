"""Projections of a checkpoint in vLLM's fused and sharded modules."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.model_executor.layers import linear as vllm_linear
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)

from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.kernels.base import LinearSpec
from river_vllm.kernels.choice import KernelChooser
from river_vllm.kernels.groups import GroupedWeight
from river_vllm.weights.quantizers import QUANTIZERS
from river_vllm.weights.shards import Part, assemble, parts_of
from river_vllm.weights.source import weight_source
from tests.support import quantized
from tests.unit.kernels.support import TOLERANCE
from tests.unit.weights.support import weights

PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
HIDDEN, HEAD, HEADS, KV_HEADS, GROUP = 64, 8, 8, 2, 32


def on_rank(rank: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a module reads of its tensor-parallel group when it is made."""
    for module in (vllm_linear, __import__("vllm.model_executor.parameter", fromlist=["_"])):
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)
        monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: size)


def qkv() -> Any:
    options = {"bias": False, "params_dtype": torch.bfloat16, "prefix": "m.0.qkv_proj"}
    return QKVParallelLinear(HIDDEN, HEAD, HEADS, KV_HEADS, **options)


def gate_up() -> Any:
    options = {"bias": False, "params_dtype": torch.bfloat16, "prefix": "m.0.gate_up_proj"}
    return MergedColumnParallelLinear(HIDDEN, [96, 96], **options)


def row() -> Any:
    options = {"bias": False, "params_dtype": torch.bfloat16, "prefix": "m.0.down_proj"}
    return RowParallelLinear(128, HIDDEN, **options)


def made(parts: list[Part]) -> list[tuple[Part, GroupedWeight]]:
    return [
        (part, QUANTIZERS["hqq"](weights(*part.shape, seed=index), GROUP))
        for index, part in enumerate(parts)
    ]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("make", "size"), [(qkv, 1), (qkv, 4), (gate_up, 2), (row, 2)])
def test_each_rank_gets_the_shard_of_its_bf16_weight(
    make: Any, size: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes go where the same loader puts the dequantised weight; four ranks share K/V heads."""
    for rank in range(size):
        on_rank(rank, size, monkeypatch)
        linear = make()
        parts = made(parts_of(linear, {} if fused else PACKED))
        for part, weight in parts:
            shard = () if part.shard is None else (part.shard,)
            linear.weight.weight_loader(linear.weight, weight.dequantize().bfloat16(), *shard)
        whole = assemble(linear, parts, GROUP)
        assert torch.equal(whole.dequantize().bfloat16(), linear.weight.data)


pytestmark = pytest.mark.usefixtures("vllm_world")

MODULES = {"qkv_proj": qkv, "gate_up_proj": gate_up, "down_proj": row}
SHAPES = {
    "m.0.q_proj": (64, HIDDEN),
    "m.0.k_proj": (16, HIDDEN),
    "m.0.v_proj": (16, HIDDEN),
    "m.0.gate_proj": (96, HIDDEN),
    "m.0.up_proj": (96, HIDDEN),
    "m.0.down_proj": (HIDDEN, 128),
}
CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "num_hidden_layers": 1}


def backbone() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=generator) * 0.05).bfloat16()
        for name, shape in SHAPES.items()
    }


def checkpoint(
    folder: Path, weights: dict[str, torch.Tensor] | None = None
) -> dict[str, GroupedWeight]:
    """Write a 4-bit checkpoint; what it holds, as bfloat16 kernels keep it."""
    made = {
        name: QUANTIZERS["rtn"](weight, GROUP) for name, weight in (weights or backbone()).items()
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in made.items():
        tensors |= quantized.compressed_tensors(name, weight)
    quantized.write(folder, tensors, CONFIG, quantized.compressed_tensors_config(GROUP))
    return made


def source(folder: Path, **settings: Any) -> Any:
    model = SimpleNamespace(
        model="someone/some-model",
        architecture="RiverLlamaForCausalLM",
        hf_config=SimpleNamespace(hidden_size=HIDDEN, num_hidden_layers=1),
    )
    config = RiverConfig(weights=str(folder), cache_dir="off", **settings)
    return weight_source(config, model, PACKED)


def groups(folder: Path, module: str, **settings: Any) -> tuple[Any, GroupedWeight]:
    """A loaded module of vLLM's, and its groups."""
    linear = MODULES[module]()
    weights = backbone()
    names = [f"m.0.{name}" for name in PACKED.get(module, [module])]
    linear.weight.data.copy_(torch.cat([weights[name] for name in names]))
    found = source(folder, **settings)
    size = found.group_size(linear, linear.weight.shape[1])
    return linear, found.groups(linear, linear.weight.data, size, False)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_products_are_those_of_the_dequantised_checkpoint(module: str, tmp_path: Path) -> None:
    made = checkpoint(tmp_path)
    _, found = groups(tmp_path, module)
    names = [f"m.0.{name}" for name in PACKED.get(module, [module])]
    weight = torch.cat([made[name].dequantize() for name in names])
    rows, features = weight.shape
    spec = LinearSpec(features, rows, GROUP, torch.bfloat16, torch.device("cpu"))
    x = torch.randn(3, features, generator=torch.Generator().manual_seed(1)).bfloat16()
    out = KernelChooser("torch").pack(spec, lambda _: found).apply(x, None).float()
    expected = x.float() @ weight.t()
    assert float((out - expected).norm() / expected.norm()) < TOLERANCE


@pytest.mark.parametrize(("stored", "width", "expected"), [(96, 384, 32), (192, 384, 64)])
def test_any_multiple_of_32_is_split_to_what_fits(
    tmp_path: Path, stored: int, width: int, expected: int
) -> None:
    weight = QUANTIZERS["rtn"](backbone()["m.0.down_proj"], 32)
    tensors = quantized.compressed_tensors("m.0.down_proj", weight)
    quantized.write(tmp_path, tensors, CONFIG, quantized.compressed_tensors_config(stored))
    assert source(tmp_path).group_size(MODULES["down_proj"](), width) == expected
    assert stored % expected == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "architecture = 'Qwen2ForCausalLM'"),
        ({"hidden_size": 128}, "hidden_size = 128"),
        ({"quantization_config": quantized.compressed_tensors_config(48)}, "groups of 48"),
    ],
    ids=str,
)
def test_another_model_is_refused_at_start(change: Any, words: str, tmp_path: Path) -> None:
    checkpoint(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RiverError) as error:
        source(tmp_path)
    assert words in str(error.value) and str(tmp_path) in str(error.value)


def test_another_models_weight_is_named(tmp_path: Path) -> None:
    other = {name: weight.flip(0) for name, weight in backbone().items()}
    checkpoint(tmp_path, other)
    with pytest.raises(RiverError, match=r"'m.0.down_proj': differs by 1\d\d% from the backbone"):
        groups(tmp_path, "down_proj")


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    weights = backbone()
    weights["m.0.k_proj"] = weights["m.0.k_proj"].repeat(2, 1)
    checkpoint(tmp_path, weights)
    with pytest.raises(RiverError, match=r"'m.0.k_proj' is 32 x 64, the backbone's 16 x 64"):
        groups(tmp_path, "qkv_proj")


def test_settings_that_contradict_the_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    with pytest.raises(RiverError, match=r"'quantizer' = 'rtn': the weights in .* 'compressed-"):
        source(tmp_path, quantizer="rtn")
    with pytest.raises(RiverError, match=r"'group_size' = 128: the weights in .* have 32"):
        source(tmp_path, group_size=128)


@pytest.mark.parametrize("settings", [{}, {"group_size": 32}], ids=str)
def test_a_configuration_may_say_what_is_read(settings: dict[str, Any], tmp_path: Path) -> None:
    checkpoint(tmp_path)
    found = source(tmp_path, **settings)
    assert found.quantizer == "compressed-tensors"
    # The LM head's groups do not follow: they would depend on whether the setting is given.
    assert found.group_size(torch.nn.Module(), 256) == 128
