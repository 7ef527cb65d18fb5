"""Which forward a pass takes, which rows run in it, and what attention is told of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from river_vllm.compat import CUDAGraphMode, get_forward_context, override_forward_context
from river_vllm.model import forward as module
from river_vllm.model.compiled import RoutedForward
from river_vllm.model.forward import Forward, River
from river_vllm.step.table import Current, Pass, Path, Span, StepTable

L = 4
NEVER = 1 << 30


class Routed:
    """The forward in which rows may leave."""

    active = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.active = True
        try:
            yield
        finally:
            self.active = False


class Runner:
    """A runner whose model has a river; every free row leaves after layer 1."""

    device = torch.device("cpu")
    vllm_config = "config"
    attn_groups: Any = ()
    supports_mm_inputs = enable_prompt_embeds = False
    lora_config: Any = None

    def __init__(self, compiles: bool = False, dense: Any = None, linears: Any = ()) -> None:
        self.passes: list[tuple[str, int]] = []
        """The forward of each pass, and its rows."""
        self.routed: Any = Routed()
        self.routed.within_compiled = compiles
        residency: Any = SimpleNamespace(
            num_layers=L, resident=L, offloads=False, limit=L, need=lambda layer: None
        )
        router: Any = SimpleNamespace(decide=self.decide)
        self.river = River(Current(L), router, self.routed, residency, linears, dense)
        self.fails = False

    def get_model(self) -> Any:
        return self

    def decide(self, table: StepTable, layers_run: int, *_: Any) -> None:
        if layers_run == 1 and table.free.any():
            table.leave(np.full(int(table.free.sum()), True), layers_run)

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids)

    def model(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Each row's output is how many backbone layers it ran."""
        self.passes.append(("routed" if self.routed.active else "vLLM's", len(input_ids)))
        hidden = torch.zeros(len(input_ids), 1)
        for layer in range(L):
            self.river.route(layer, hidden, None)
            if self.fails:
                raise ZeroDivisionError
            table = self.river.current.due.table
            if table.path is Path.BACKBONE:
                hidden += 1
            elif table.path is Path.MIXED:
                hidden = table.mixed(hidden, lambda x: x + 1, lambda x: x)
        return hidden

    def run(self, due: Pass) -> list[float]:
        found: list[float] = Forward(self).run(due).flatten().tolist()
        return found


def step(*floors: int, exact: bool = True) -> Pass:
    """A step of decode tokens."""
    rows = len(floors)
    table = StepTable(L, [1] * rows, [0.5] * rows, floors)
    spans = [Span(i, 7, 1) for i in range(rows)]
    return Pass(table, spans, {"input_ids": torch.zeros(rows, dtype=int)}, True, exact=exact)


@pytest.fixture(autouse=True)
def own_context(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(metadata: Any, vllm_config: Any, slot_mapping: Any) -> Any:
        return SimpleNamespace(attn_metadata=metadata, config=vllm_config, slots=slot_mapping)

    monkeypatch.setattr(module, "create_forward_context", create)
    monkeypatch.setattr(Runner, "input_batch", SimpleNamespace(block_table=[]), raising=False)


@pytest.mark.parametrize(
    ("compiles", "floors", "depths", "passes"),
    [
        # Rows of one kind run once.
        (False, (NEVER, L), [L, L], [("vLLM's", 2)]),
        (True, (NEVER, L), [L, L], [("vLLM's", 2)]),
        (True, (1, 1), [1, 1], [("routed", 2)]),
        # Without a compiler one forward serves both kinds.
        (False, (NEVER, 1, NEVER), [L, 1, L], [("routed", 3)]),
        # vLLM's compiled forward runs all rows, and the routed one some again.
        (True, (NEVER, 1, NEVER, 1), [L, 1, L, 1], [("vLLM's", 4), ("routed", 2)]),
    ],
)
def test_which_forward_runs_over_which_rows(
    compiles: bool, floors: Any, depths: list[int], passes: Any
) -> None:
    runner, due = Runner(compiles), step(*floors)
    assert runner.run(due) == depths
    assert runner.passes == passes
    assert due.table.exit_layer.tolist() == depths
    assert runner.river.current.due is due, "the LM head reads the whole step's"


def test_a_request_runs_again_from_its_first_exit_on() -> None:
    """A prompt and an exact token run no second time; attention takes the last rows."""
    table = StepTable(
        8,
        rows=[4, 1, 1, 1, 1, 1],
        threshold=[1.0, 0.5, 1.0, 1.0, -1.0, -1.0],
        floor=[NEVER, 1, NEVER, NEVER, 3, 2],
        replayed=[0, 0, 0, 0, 1, 1],
        request=[0, 1, 2, 3, 3, 3],
    )
    spans = [Span(0, 0, 4), Span(1, 9, 1), Span(2, 9, 1), Span(3, 11, 3)]
    inputs = {
        "input_ids": torch.arange(9),
        "positions": torch.arange(20).view(2, 10)[:, :9],  # of M-RoPE, in vLLM's wider buffer
        "inputs_embeds": torch.arange(18).view(9, 2),
        "intermediate_tensors": None,
    }
    groups, part = Pass(table, spans, inputs, in_step=True).leaving_part()
    assert groups.tolist() == [False, True, False, False, True, True]
    assert part.spans == [Span(1, 9, 1), Span(3, 12, 2)]
    assert part.inputs["input_ids"].tolist() == [4, 7, 8]
    assert part.inputs["positions"].tolist() == [[4, 7, 8], [14, 17, 18]]
    assert part.inputs["positions"].stride() == (10, 1), "a constant of the compiled forward"
    assert part.inputs["inputs_embeds"].tolist() == [[8, 9], [14, 15], [16, 17]]
    assert (part.inputs["intermediate_tensors"], part.in_step) == (None, False)
    assert part.table.floor.tolist() == [1, 3, 2]


def test_a_pass_that_fails_leaves_nothing_behind_for_the_next() -> None:
    runner = Runner(compiles=True)
    runner.fails = True
    with pytest.raises(ZeroDivisionError):
        runner.run(step(1, 1))
    runner.fails, runner.passes = False, []
    assert runner.run(step(NEVER, NEVER)) == [L, L]
    assert runner.passes == [("vLLM's", 2)]


@pytest.mark.parametrize(
    ("exact", "packed", "taken"),
    [(False, False, "routed"), (True, False, "vLLM's"), (False, True, "vLLM's")],
)
def test_rivers_own_product_serves_passes_that_may_round_otherwise(
    exact: bool, packed: bool, taken: str
) -> None:
    """Where vLLM has left the weights as they were, since it has no product for several rows."""
    plain = None if packed else torch.empty(4)
    linear = SimpleNamespace(quant_method=SimpleNamespace(plain_weight=lambda layer: plain))
    runner, due = Runner(True, dense=object(), linears=[[linear]]), step(NEVER, NEVER, exact=exact)
    assert runner.run(due) == [L, L]
    assert runner.passes == [(taken, 2)]
    assert (due.dense is not None) is (taken == "routed")


class Decorated(nn.Module):
    """As vLLM's decorator leaves a module: a switch, and which dimensions vary."""

    _dynamic_arg_dims: ClassVar = {"x": 0}
    do_not_compile = False

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> bool:
        """Whether vLLM's compiled forward is passed over."""
        return bool(get_forward_context().skip_compiled)


def test_where_the_whole_model_is_compiled_routed_steps_are_not() -> None:
    model, current, config = Decorated(), Current(2), SimpleNamespace()
    routed = RoutedForward(current, model, model.layers, config)  # type: ignore[arg-type]
    assert not routed.compiles
    context: Any = SimpleNamespace(skip_compiled=False, cudagraph_runtime_mode=CUDAGraphMode.FULL)
    with override_forward_context(context):
        with routed():
            assert model(torch.ones(1, 2)) and not current.routed
            assert context.cudagraph_runtime_mode is CUDAGraphMode.NONE
        assert not model(torch.ones(1, 2))
        assert context.cudagraph_runtime_mode is CUDAGraphMode.FULL
