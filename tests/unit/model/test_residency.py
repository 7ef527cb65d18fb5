"""Backbone weights that leave memory and come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vllm.model_executor.model_loader.reload.layerwise import record_metadata_for_reloading

from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError
from river_vllm.model.layer_files import CheckpointLayers
from river_vllm.model.linear import RiverLinearMethod, hold_on_meta
from river_vllm.model.passes import Current
from river_vllm.model.residency import FETCHED, Residency
from tests.unit.model.support import linear
from tests.unit.model.test_linear import Packed

pytestmark = pytest.mark.usefixtures("vllm_world")

LAYERS, WIDTH = 5, 64


class Stack:
    """One projection in each of several layers, on a checkpoint of its own."""

    def __init__(self, folder: Path, config: RiverConfig) -> None:
        self.current = Current(LAYERS)
        self.linears = [linear(WIDTH, WIDTH, bias=True, seed=i) for i in range(LAYERS)]
        self.stock = [linear(WIDTH, WIDTH, bias=True, seed=i) for i in range(LAYERS)]
        fetched = self.tensors if config.deep == "fetch" else None
        self.residency = Residency([[x] for x in self.linears], config, self.load, fetched)
        tensors = {}
        for index, (dual, stock) in enumerate(zip(self.linears, self.stock, strict=True)):
            tensors[f"model.layers.{index}.proj.weight"] = stock.weight.detach().clone()
            tensors[f"model.layers.{index}.proj.bias"] = stock.bias.detach().clone()
            stock.quant_method.process_weights_after_loading(stock)
            kept = index < self.residency.resident
            dual.quant_method = RiverLinearMethod(
                dual.quant_method, Packed, self.current, index, kept
            )
            hold_on_meta(dual)
        record_metadata_for_reloading(torch.nn.ModuleList(self.linears))
        save_file(tensors, folder / "model.safetensors")
        self.files = CheckpointLayers([str(folder / "model.safetensors")], LAYERS)
        self.read: list[int] = []
        for index in range(LAYERS):
            self.load(self.tensors(index))
        self.read.clear()

    def tensors(self, index: int) -> Any:
        return self.files.tensors(index)

    def load(self, tensors: Any) -> None:
        """What vLLM's models do with a checkpoint's tensors."""
        for name, tensor in tensors:
            _, _, index, _, kind = name.split(".")
            parameter = getattr(self.linears[int(index)], kind)
            parameter.weight_loader(parameter, tensor)
            if kind == "weight":
                self.read.append(int(index))

    @property
    def held(self) -> list[int]:
        methods = [x.quant_method for x in self.linears]
        for module, method in zip(self.linears, methods, strict=True):
            there = module.weight.numel() > 0 or module.cpu_linear is not None
            assert there is method.has_backbone
        return [i for i, method in enumerate(methods) if method.has_backbone]

    def run(self, index: int) -> torch.Tensor:
        out: torch.Tensor = self.linears[index](X)[0]
        return out


X = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(3)).bfloat16()


def test_what_is_not_resident_is_never_there(tmp_path: Path) -> None:
    stack = Stack(tmp_path, RiverConfig(resident_layers=2))
    assert stack.held == [0, 1]
    assert stack.residency.limit == stack.residency.resident == 2
    assert torch.equal(stack.run(1), stack.stock[1](X)[0])
    with pytest.raises(RuntimeError, match="not in memory"):
        stack.run(2)
    with pytest.raises(RuntimeError, match="layer 2 holds no backbone weights"):
        stack.residency.need(2)
    stack.current.due.table.all_river()
    weight = stack.linears[4].quant_method.packed
    assert torch.equal(stack.run(4), weight.apply(X, stack.linears[4].quant_method._bias))


def test_a_fetched_layer_is_stock_and_the_oldest_goes(tmp_path: Path) -> None:
    stack = Stack(tmp_path, RiverConfig(resident_layers=2, deep="fetch"))
    assert stack.residency.limit == LAYERS
    assert stack.residency.resident == 2, "where dummy runs leave: they fetch nothing"
    for index in range(LAYERS):
        stack.residency.need(index)
        assert torch.equal(stack.run(index), stack.stock[index](X)[0])
    assert FETCHED == 2
    assert (stack.read, stack.held) == ([2, 3, 4], [0, 1, 3, 4])
    stack.residency.need(3)
    stack.residency.need(2)
    assert (stack.read, stack.held) == ([2, 3, 4, 2], [0, 1, 2, 3])
    info = stack.residency.info()
    assert (info["fetched_layers"], info["fetches"]) == ([2, 3], 4)
    assert info["backbone_bytes"] == 4 * WIDTH * WIDTH * 2


def test_packing_happens_once(tmp_path: Path) -> None:
    stack = Stack(tmp_path, RiverConfig(resident_layers=2, deep="fetch"))
    packed = [x.quant_method.packed for x in stack.linears]
    stack.residency.need(4)
    assert [x.quant_method.packed for x in stack.linears] == packed


def test_only_safetensors_files_are_read_again(tmp_path: Path) -> None:
    with pytest.raises(RiverError, match=r"not from 'pytorch_model\.bin'"):
        CheckpointLayers([str(tmp_path / "pytorch_model.bin")], 1)
    save_file({"model.layers.0.w": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(RiverError, match=r"no tensors named 'layers\.1\.…'"):
        CheckpointLayers([str(tmp_path / "a.safetensors")], 2)


def test_a_layer_may_be_spread_over_files(tmp_path: Path) -> None:
    values = {name: torch.full((2,), float(i)) for i, name in enumerate("abc")}
    save_file({"model.layers.0.a": values["a"], "lm_head": values["c"]}, tmp_path / "1.safetensors")
    save_file({"layers.0.b": values["b"], "layers.10.c": values["c"]}, tmp_path / "2.safetensors")
    files = sorted(map(str, tmp_path.iterdir()))
    with pytest.raises(RiverError, match=r"layers\.1\."):
        CheckpointLayers(files, 2)
    found = dict(CheckpointLayers(files, 1).tensors(0))
    assert {k: v.tolist() for k, v in found.items()} == {
        "model.layers.0.a": [0.0, 0.0],
        "layers.0.b": [1.0, 1.0],
    }


@pytest.mark.parametrize(
    ("language", "others"),
    [
        ("language_model.model.layers", "vision_tower.transformer.layers"),
        ("model.language_model.layers", "model.vision_tower.transformer.layers"),
        ("layers", "vision_encoder.transformer.layers"),
    ],
    ids=["Mistral 3", "saved since Transformers 4.52", "Mistral's own format"],
)
def test_an_image_encoders_layers_are_not_the_models(
    language: str, others: str, tmp_path: Path
) -> None:
    names = [f"{prefix}.{index}.w" for prefix in (language, others) for index in range(2)]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "a.safetensors")
    files = CheckpointLayers([str(tmp_path / "a.safetensors")], 2)
    assert [list(dict(files.tensors(index))) for index in range(2)] == [
        [f"{language}.0.w"],
        [f"{language}.1.w"],
    ]
    with pytest.raises(RiverError, match=r"no tensors named 'layers\.2\.…'"):
        CheckpointLayers([str(tmp_path / "a.safetensors")], 3)
