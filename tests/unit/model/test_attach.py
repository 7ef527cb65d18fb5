"""A whole river on a small model: hooks, router and both weights together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm.compat import CompilationMode, override_forward_context
from river_vllm.config import RiverConfig
from river_vllm.errors import RiverError, UnsupportedModelError
from river_vllm.kernels.native.backend import Backend
from river_vllm.kernels.native.library import backend
from river_vllm.model import attach as module
from river_vllm.model.attach import Info, attach, from_first_rank
from river_vllm.model.compiled import CONTEXT
from river_vllm.model.forward import Forward, River
from river_vllm.model.passes import Pass
from river_vllm.step.table import StepTable
from tests.unit.model.support import Layer, Model

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


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_rows_leave_together(model: Model, river: River, hidden: torch.Tensor, depth: int) -> None:
    expected = by_hand(model, hidden, depth)
    table = leaving_after(*[depth] * ROWS)
    assert torch.equal(run(river, table, model, hidden), expected)
    assert table.exit_layer.tolist() == [depth] * ROWS


def test_every_row_has_its_own_depth(model: Model, river: River, hidden: torch.Tensor) -> None:
    depths = (2, 0, 3, 1)
    expected = [by_hand(model, hidden, depth) for depth in range(LAYERS + 1)]
    out = run(river, leaving_after(*depths), model, hidden)
    for row, depth in enumerate(depths):
        own, other = expected[depth][row], expected[(depth + 1) % (LAYERS + 1)][row]
        # Rows of a mixed step run the 4-bit product with fewer rows beside them.
        torch.testing.assert_close(out[row], own, rtol=2**-6, atol=2**-6)
        assert (out[row] - other).norm() > 4 * (out[row] - own).norm()


@pytest.mark.skipif(backend() is None, reason="the kernel library is not built")
def test_the_similarity_is_one_native_call_where_it_can_be(
    tmp_path: Path, hidden: torch.Tensor
) -> None:
    """Not where another kernel was asked for; the decisions are alike."""
    depths, reads, names = [], [], []
    for settings in ({}, {"kernel": "torch"}):
        model = Model(LAYERS, WIDTH)
        river, info = build(model, tmp_path, **{"kernel": "auto", **settings})
        reads.append(isinstance(getattr(river.router._read, "__self__", None), Backend))
        names.append(info()["isa"])
        table = StepTable(LAYERS, [1] * ROWS, [0.6, 0.7, 0.8, 0.9], [1] * ROWS)
        run(river, table, model, hidden)
        depths.append(table.exit_layer.tolist())
    assert reads == [True, False]
    native = backend()
    assert native is not None
    assert names == [native.name, None]
    assert depths[0] == depths[1]
    assert len(set(depths[0])) > 1


@pytest.mark.parametrize(("ranks", "shared"), [(1, None), (2, from_first_rank)])
def test_several_ranks_decide_by_the_similarities_of_the_first(
    ranks: int, shared: Any, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: ranks)
    assert build(model, tmp_path)[0].router._broadcast is shared
    group = SimpleNamespace(broadcast=lambda values, src: (values.is_contiguous(), src))
    monkeypatch.setattr(module, "get_tp_group", lambda: group)
    assert from_first_rank(torch.arange(6)[::2]) == (True, 0)


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


def test_info_adds_up(model: Model, tmp_path: Path) -> None:
    _, info = build(model, tmp_path)
    found = info()
    packed = [layer.proj.quant_method.packed for layer in model.layers]
    assert found["river_bytes"] == sum(p.nbytes for p in packed)
    assert (found["num_layers"], found["quantizer"]) == (LAYERS, "rtn")
    assert (found["group_sizes"], found["kernels"], found["isa"]) == ([64], ["torch"], None)
    assert (found["lm_head"], found["resident_layers"]) == ("backbone", LAYERS)


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
        _, info = build(model, tmp_path, quantizer=quantizer, **settings)
        outputs.append(by_hand(model, hidden, 0))
        reports.append(info()["weights"])
    assert [r["made"] for r in reports] == [LAYERS, 0, LAYERS, LAYERS]
    assert [r["loaded"] for r in reports] == [0, LAYERS, 0, 0]
    assert reports[0]["folder"] == reports[1]["folder"] == str(tmp_path / "river")
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[3])


def test_steps_leave_with_the_last_resident_layer(
    model: Model, tmp_path: Path, hidden: torch.Tensor
) -> None:
    """Rows that never leave too; and warm-up and dummy runs, which are no step."""
    river, _ = build(model, tmp_path, resident_layers=2)
    assert not model.layers[2].proj.quant_method.has_backbone
    expected = by_hand(model, hidden, 2)
    for _ in range(2):
        assert torch.equal(model(hidden), expected)
    table = leaving_after(*[LAYERS] * ROWS)
    assert torch.equal(run(river, table, model, hidden), expected)
    assert table.exit_layer.tolist() == [2] * ROWS
    river.rest()
    assert torch.equal(model(hidden), expected)


def test_the_whole_forward_pass_can_be_traced(
    model: Model, river: River, hidden: torch.Tensor
) -> None:
    """vLLM compiles a model without graph breaks; hooks, router and linears must not make one."""
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(hidden), model(hidden))


def test_layers_that_are_alike_are_traced_once(
    model: Model, river: River, hidden: torch.Tensor
) -> None:
    """The first takes no residual: two graphs for all layers. What runs is what ran before."""
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Any:
        graphs.append(graph)
        return graph

    river.current.routed = True
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    context = SimpleNamespace(no_compile_layers={CONTEXT: river})
    with torch.inference_mode(), override_forward_context(context):
        expected = run(river, leaving_after(2, 0, 3, 1), model, hidden)
        with river.routed.one_layer_for_all():
            found = run(river, leaving_after(2, 0, 3, 1), compiled, hidden)
    assert torch.equal(found, expected)
    (graph,) = graphs
    assert len(list(graph.children())) == 2
    assert [type(layer) for layer in model.layers] == [Layer] * LAYERS


def test_a_traced_routed_pass_decides_when_it_runs(
    model: Model, river: River, hidden: torch.Tensor
) -> None:
    """One graph for every mixture: decisions and products are operators, which look at the step."""
    torch._dynamo.reset()
    river.current.routed = True
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    context = SimpleNamespace(no_compile_layers={CONTEXT: river})
    with torch.inference_mode(), override_forward_context(context):
        for depths in ((1, 1, 1, 1), (2, 0, 3, 1)):
            expected = run(river, leaving_after(*depths), model, hidden)
            table = leaving_after(*depths)
            river.routed.layer = -1
            assert torch.equal(run(river, table, compiled, hidden), expected)
            assert table.exit_layer.tolist() == list(depths)
