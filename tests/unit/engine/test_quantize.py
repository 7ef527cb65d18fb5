"""The worker's side of ``river-vllm quantize``, on small layers without an engine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from river_vllm.config import RiverConfig
from river_vllm.engine.quantize import QuantizeExtension
from river_vllm.errors import RiverError
from river_vllm.weights.formats import own_config
from river_vllm.weights.gptq import quantize_gptq
from river_vllm.weights.source import weight_source
from tests.unit.model.support import Model

pytestmark = pytest.mark.usefixtures("vllm_world")

LAYERS, WIDTH = 3, 64


class Worker(QuantizeExtension):
    """As vLLM puts the extension among its worker's bases."""

    def __init__(self, model: Model) -> None:
        self.model_runner = SimpleNamespace(get_model=lambda: model)
        config = SimpleNamespace(get_total_num_hidden_layers=lambda: LAYERS)
        self.vllm_config = SimpleNamespace(model_config=config)


def loaded() -> Model:
    """Weights are there and not yet in vLLM's own form; the same every time."""
    model = Model(LAYERS, WIDTH)
    for index, layer in enumerate(model.layers):
        layer.proj.prefix = f"model.layers.{index}.proj"
    return model


@pytest.fixture
def model() -> Model:
    model = loaded()
    for layer in model.layers:
        layer.proj.quant_method.process_weights_after_loading(layer.proj)
    return model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The bf16 weights on disk: vLLM's CPU build does not keep them."""
    folder = tmp_path / "model"
    folder.mkdir()
    weights = {f"{layer.proj.prefix}.weight": layer.proj.weight.data for layer in loaded().layers}
    save_file({name: weight.clone() for name, weight in weights.items()}, folder / "m.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder


def hidden(tokens: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, WIDTH, generator=generator)
    return (torch.randn(tokens, 8, generator=generator) @ mixing).bfloat16()


def quantize(worker: Worker, model: Model, checkpoint: Path, out: Path) -> list[dict[str, Any]]:
    """Two layers, and then the other, as with little memory."""
    out.mkdir()
    reports = []
    for layers in ([0, 1], [2]):
        worker.river_record_hessians(layers)
        model(hidden())
        for layer in layers:
            report = worker.river_quantize_layer(layer, str(checkpoint), str(out), 128, False)
            reports.append(report)
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = own_config(128, False)
    (out / "config.json").write_text(json.dumps(config))
    return reports


def test_layers_are_quantised_for_what_they_were_given(
    model: Model, checkpoint: Path, tmp_path: Path
) -> None:
    inputs: list[torch.Tensor] = []
    hooks = [
        layer.proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0].float()))
        for layer in model.layers
    ]
    model(hidden())
    for hook in hooks:
        hook.remove()
    out = tmp_path / "out"
    reports = quantize(Worker(model), model, checkpoint, out)
    assert [r["tokens"] for r in reports] == [200] * LAYERS
    assert all(0 < r["output_error"] < 0.1 for r in reports)
    source = weight_source(
        RiverConfig(weights=str(out), cache_dir="off"),
        SimpleNamespace(
            model="m", architecture="RiverLlamaForCausalLM", hf_config=SimpleNamespace()
        ),
        {},
    )
    for layer, x in zip(loaded().layers, inputs, strict=True):
        weight = layer.proj.weight.data
        found = source.groups(layer.proj, weight, source.group_size(layer.proj, WIDTH), False)
        expected = quantize_gptq(weight, 64, [x.t() @ x / len(x)])
        # The Hessian is summed in another order.
        assert float((found.codes != expected.codes).float().mean()) < 0.02
        assert torch.equal(found.scales, expected.scales)
    assert source.quantizer == "gptq" and not source.integer_zeros


def test_a_checkpoint_of_another_shape_is_named(
    model: Model, checkpoint: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.proj.weight"
    save_file({name: torch.zeros(WIDTH, 32)}, checkpoint / "m.safetensors")
    with pytest.raises(RiverError, match=f"'{name}' in .*unexpected shape"):
        quantize(Worker(model), model, checkpoint, tmp_path / "out")
