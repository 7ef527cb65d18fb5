"""A whole river on a small model: hooks, router and both weights together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm.config import RiverConfig
from river_vllm.kernels.native.library import backend
from river_vllm.kernels.native.transition import NativeTransition
from river_vllm.layers.river import River
from river_vllm.router.batch import ExitUnit, StepBatch
from tests.unit.layers.support import Model

pytestmark = pytest.mark.usefixtures("vllm_world")

LAYERS, WIDTH, ROWS = 3, 64, 4


@pytest.fixture
def model() -> Model:
    return Model(LAYERS, WIDTH)


@pytest.fixture
def river(model: Model, tmp_path: Path) -> River:
    return build(model, tmp_path)


def build(model: Model, folder: Path, **settings: Any) -> River:
    vllm_config: Any = SimpleNamespace(
        model_config=SimpleNamespace(
            dtype=torch.bfloat16,
            get_total_num_hidden_layers=lambda: LAYERS,
            model=str(folder),
            architecture="RiverLlamaForCausalLM",
            hf_config=SimpleNamespace(),
        ),
        device_config=SimpleNamespace(device="cpu"),
        compilation_config=SimpleNamespace(static_forward_context={}),
    )
    config = RiverConfig(**{"quantizer": "rtn", "kernel": "torch", **settings})
    weights = [layer.proj.weight.detach().clone() for layer in model.layers]
    river = River(model, config, vllm_config)
    for layer, weight in zip(model.layers, weights, strict=True):
        layer.proj.weight.weight_loader(layer.proj.weight, weight)
    return river


@pytest.fixture
def hidden() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, WIDTH, generator=generator).bfloat16()


def forced(depths: list[int]) -> StepBatch:
    return StepBatch(
        len(depths), [ExitUnit(i, i + 1, -1.0, d, forced=True) for i, d in enumerate(depths)]
    )


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


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_rows_leave_together(model: Model, river: River, hidden: torch.Tensor, depth: int) -> None:
    batch = forced([depth] * ROWS)
    with river.router.step(batch):
        out = model(hidden)
    assert torch.equal(out, by_hand(model, hidden, depth))
    assert batch.exit_layer.tolist() == [depth] * ROWS


def test_every_row_has_its_own_depth(model: Model, river: River, hidden: torch.Tensor) -> None:
    depths = [2, 0, 3, 1]
    with river.router.step(forced(depths)):
        out = model(hidden)
    for row, depth in enumerate(depths):
        expected = by_hand(model, hidden, depth)[row]
        # Rows of a mixed step run the 4-bit product with fewer rows beside them.
        torch.testing.assert_close(out[row], expected, rtol=2**-6, atol=2**-6)
        other = by_hand(model, hidden, (depth + 1) % (LAYERS + 1))[row]
        assert (out[row] - other).norm() > 4 * (out[row] - expected).norm()


@pytest.mark.skipif(backend() is None, reason="the kernel library is not built")
def test_the_similarity_is_one_native_call_where_it_can_be(
    model: Model, tmp_path: Path, hidden: torch.Tensor
) -> None:
    """Not where another kernel, or another signal, was asked for; the decisions are the same."""
    depths, reads, names, taus = [], [], [], (0.6, 0.7, 0.8, 0.9)
    for settings in ({}, {"kernel": "torch"}, {"signal": "norm"}):
        river = build(model := Model(LAYERS, WIDTH), tmp_path, **{"kernel": "auto", **settings})
        reads.append(isinstance(river.router._read, NativeTransition))
        names.append(river.info()["isa"])
        batch = StepBatch(ROWS, [ExitUnit(i, i + 1, tau, 1) for i, tau in enumerate(taus)])
        with river.step(batch):
            model(hidden)
        depths.append(batch.exit_layer.tolist())
    assert reads == [True, False, False]
    native = backend()
    assert native is not None
    assert names == [native.name, None, native.name]
    assert depths[0] == depths[1]
    assert len(set(depths[0])) > 1


def test_info_adds_up(model: Model, river: River) -> None:
    info = river.info()
    packed = [layer.proj.quant_method.packed for layer in model.layers]
    assert info["river_bytes"] == sum(p.nbytes for p in packed)
    assert (info["num_layers"], info["quantizer"]) == (LAYERS, "rtn")
    assert (info["group_sizes"], info["kernels"], info["isa"]) == ([64], ["torch"], None)


def test_the_models_parameters_keep_their_names(river: River, model: Model) -> None:
    names = [name for name, _ in Model(LAYERS, WIDTH).named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("quantizer", ["rtn", "hqq"])
def test_a_second_start_loads_and_computes_the_same(
    quantizer: str, tmp_path: Path, hidden: torch.Tensor
) -> None:
    outputs, reports = [], []
    for settings in ({}, {}, {"cache_dir": "off"}, {"group_size": 32}):
        model = Model(LAYERS, WIDTH)
        river = build(model, tmp_path, quantizer=quantizer, **settings)
        outputs.append(by_hand(model, hidden, 0))
        reports.append(river.info()["weights"])
    assert [r["made"] for r in reports] == [LAYERS, 0, LAYERS, LAYERS]
    assert [r["loaded"] for r in reports] == [0, LAYERS, 0, 0]
    assert reports[0]["folder"] == reports[1]["folder"] == str(tmp_path / "river")
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[3])


def test_steps_leave_with_the_last_resident_layer(
    model: Model, tmp_path: Path, hidden: torch.Tensor
) -> None:
    """Warm-up and dummy runs too, which bring no batch."""
    river = build(model, tmp_path, resident_layers=2)
    assert not model.layers[2].proj.quant_method.has_backbone
    expected = by_hand(model, hidden, 2)
    with river.step(None):
        assert torch.equal(model(hidden), expected)
    batch = StepBatch(ROWS, [])
    with river.step(batch):
        assert torch.equal(model(hidden), expected)
    assert batch.deepest == 2
    with pytest.raises(RuntimeError, match="layer 2 holds no backbone weights"):
        model(hidden)


def test_the_whole_forward_pass_can_be_traced(
    model: Model, river: River, hidden: torch.Tensor
) -> None:
    """vLLM compiles a model without graph breaks; hooks, router and linears must not make one."""
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(hidden), model(hidden))


@pytest.mark.parametrize(
    ("settings", "measured"),
    [
        ({}, False),
        ({"max_rows": "all"}, True),
        ({"verify": 2}, True),
        ({"resident_layers": 2}, True),
    ],
)
def test_products_are_measured_where_whole_steps_will_not_be(
    model: Model, tmp_path: Path, settings: dict[str, Any], measured: bool
) -> None:
    river = build(model, tmp_path, **settings)
    for layer in model.layers:
        layer.proj.quant_method.process_weights_after_loading(layer.proj)
    assert bool(river.info()["crossover"]["speedup_by_rows"]) is measured
