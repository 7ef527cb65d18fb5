"""A whole river on a small model: hooks, router and both weights together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm.compat import CompilationMode
from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError, UnsupportedModelError
from river_vllm.kernels.native.library import backend
from river_vllm.model import attach as module
from river_vllm.model.attach import Info, attach
from river_vllm.model.compiled import CONTEXT
from river_vllm.model.forward import Forward, River
from river_vllm.model.passes import Pass
from river_vllm.step.table import StepTable
from tests.unit.model.support import Model

pytestmark = pytest.mark.usefixtures("vllm_world")

LAYERS, WIDTH, ROWS = 3, 64, 4


@pytest.fixture
def model() -> Model:
    return Model(LAYERS, WIDTH)


@pytest.fixture
def river(model: Model, tmp_path: Path) -> River:
    return build(model, tmp_path)[0]


def build(model: Model, folder: Path, **settings: Any) -> tuple[River, Info]:
    vllm_config: Any = SimpleNamespace(
        model_config=SimpleNamespace(
            dtype=torch.bfloat16,
            get_total_num_hidden_layers=lambda: LAYERS,
            model=str(folder),
            architecture="RiverLlamaForCausalLM",
            hf_config=SimpleNamespace(),
        ),
        device_config=SimpleNamespace(device="cpu"),
        compilation_config=SimpleNamespace(static_forward_context={}, mode=CompilationMode.NONE),
    )
    config = RiverConfig(**{"quantizer": "rtn", "kernel": "torch", **settings})
    weights = [layer.proj.weight.detach().clone() for layer in model.layers]
    river, info = attach(model, config, vllm_config, (), lambda: None)
    assert vllm_config.compilation_config.static_forward_context == {CONTEXT: river}
    for layer, weight in zip(model.layers, weights, strict=True):
        layer.proj.weight.weight_loader(layer.proj.weight, weight)
    return river, info


@pytest.fixture
def hidden() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, WIDTH, generator=generator).bfloat16()


def leaving_after(*depths: int) -> StepTable:
    """A row for each depth; L and more: it never leaves."""
    one = [1] * len(depths)
    return StepTable(LAYERS, one, [-1.0] * len(depths), depths, replayed=one)


def run(river: River, table: StepTable, model: Any, hidden: torch.Tensor) -> torch.Tensor:
    called: Any = lambda hidden: model(hidden)  # noqa: E731 - it gets an attribute
    called.river = river
    runner = SimpleNamespace(get_model=lambda: called, model=called)
    return Forward(runner).run(Pass(table, (), {"hidden": hidden}, in_step=True))


def by_hand(model: Model, hidden: torch.Tensor, depth: int) -> torch.Tensor:
    """All rows at one exit layer, each projection called directly."""
    residual = torch.zeros_like(hidden)
    for index, layer in enumerate(model.layers):
        residual = hidden + residual
        method = layer.proj.quant_method
        if index < depth:
            hidden = method.apply(layer.proj, residual)
        else:
            hidden = method.packed.apply(residual, None)
    return hidden + residual


def test_outside_a_step_the_model_is_stock(
    model: Model, river: River, hidden: torch.Tensor
) -> None:
    assert torch.equal(model(hidden), by_hand(model, hidden, LAYERS))


def test_every_row_has_its_own_depth(model: Model, river: River, hidden: torch.Tensor) -> None:
    depths = (2, 0, 3, 1)
    expected = [by_hand(model, hidden, depth) for depth in range(LAYERS + 1)]
    out = run(river, leaving_after(*depths), model, hidden)
    for row, depth in enumerate(depths):
        own, other = expected[depth][row], expected[(depth + 1) % (LAYERS + 1)][row]
        # Rows of a mixed step run the 4-bit product with fewer rows beside them.
        torch.testing.assert_close(out[row], own, rtol=2**-6, atol=2**-6)
        assert (out[row] - other).norm() > 4 * (out[row] - own).norm()


def test_a_quantised_projection_is_refused_by_name(model: Model, tmp_path: Path) -> None:
    class Fp8Method:
        pass

    model.layers[1].proj.prefix = "layers.1.proj"
    model.layers[1].proj.quant_method = Fp8Method()
    with pytest.raises(UnsupportedModelError, match=r"'layers\.1\.proj' uses Fp8Method"):
        build(model, tmp_path)


@pytest.mark.skipif(backend() is None, reason="the kernel library is not built")
def test_ranks_on_cpus_of_two_kinds_are_refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: 2)
    said = []
    group = SimpleNamespace(broadcast_object=lambda own, src: said.append(own) or own)
    monkeypatch.setattr(module, "get_tp_group", lambda: group)
    build(model, tmp_path, kernel="auto")
    first = ("scalar", *said[0][1:])
    group.broadcast_object = lambda own, src: first
    with pytest.raises(RiverError, match=f"rank 0 has {'/'.join(first)} .*{'/'.join(said[0])}"):
        build(Model(LAYERS, WIDTH), tmp_path, kernel="auto")


def test_the_models_parameters_keep_their_names(river: River, model: Model) -> None:
    names = [name for name, _ in Model(LAYERS, WIDTH).named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names
