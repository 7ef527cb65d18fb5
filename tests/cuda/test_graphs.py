"""Passes with exits beside vLLM's CUDA graphs: no graph answers for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from vllm.compilation.cuda_graph import CUDAGraphWrapper
from vllm.compilation.monitor import set_cudagraph_capturing_enabled
from vllm.forward_context import BatchDescriptor, ForwardContext

from river_vllm.compat import CUDAGraphMode, get_forward_context, override_forward_context
from river_vllm.model.compiled import RoutedForward
from river_vllm.model.forward import Forward, River
from river_vllm.step.router import Router, by_torch, transition_similarity
from river_vllm.step.table import Current, Pass, Path, Span, StepTable
from tests.cuda.rehearsal import Graph, rehearse
from tests.cuda.support import pretend_gpu

L = 4
NEVER = 1 << 30
CONFIG: Any = SimpleNamespace(compilation_config=SimpleNamespace())


class Inner(nn.Module):
    """A model as vLLM's decorator leaves it: its compiled forward is a graph of its own.

    A row's output counts the backbone layers that it ran.
    """

    do_not_compile = False
    _dynamic_arg_dims: ClassVar = {"input_ids": 0}

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(L))
        self.river: Any = None
        self.compiled = CUDAGraphWrapper(self.traced, CONFIG, CUDAGraphMode.PIECEWISE)

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        if get_forward_context().skip_compiled:
            return self.forward(input_ids)
        return self.compiled(input_ids)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.zeros(len(input_ids), 1)
        for layer in range(L):
            self.river.route(layer, hidden, None)
            table = self.river.current.due.table
            if table.path is Path.BACKBONE:
                hidden = hidden + 1
            elif table.path is Path.MIXED:
                hidden = table.mixed(hidden, lambda x: x + 1, lambda x: x)
        return hidden

    def traced(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The forward that a compiler traces: decisions are left out (``Decision``)."""
        return torch.zeros(len(input_ids), 1) + L


class Runner:
    """vLLM's, with a model in its wrapper for full graphs; ``whole``: all of it is compiled."""

    device = torch.device("cpu")
    vllm_config = CONFIG
    attn_groups: Any = ()
    supports_mm_inputs = enable_prompt_embeds = False
    lora_config: Any = None
    input_batch = SimpleNamespace(block_table=[])

    def __init__(self, whole: bool) -> None:
        inner, current = Inner(), Current(L)
        self.made: Any = inner
        if not whole:
            self.made = nn.ModuleList([inner])
            self.made.forward = inner.__call__
        routed = RoutedForward(current, self.made, inner.layers, CONFIG)
        residency: Any = SimpleNamespace(
            num_layers=L, resident=L, offloads=False, limit=L, need=lambda layer: None
        )
        router = Router(by_torch(transition_similarity))
        self.made.river = inner.river = River(current, router, routed, residency, ())
        self.model = CUDAGraphWrapper(self.made, CONFIG, CUDAGraphMode.FULL)

    def get_model(self) -> Any:
        return self.model.unwrap()

    def step(self, mode: CUDAGraphMode, tokens: torch.Tensor, *floors: int) -> list[float]:
        """Run a step of vLLM's, which has chosen a kind of graph for its padded rows."""
        made = ForwardContext({}, {}, {}, cudagraph_runtime_mode=mode)
        made.batch_descriptor = BatchDescriptor(len(tokens))
        rows = len(floors)
        table = StepTable(L, [1] * rows, [-1.0] * rows, floors)
        spans = [Span(i, 7, 1) for i in range(rows)]
        due = Pass(table, spans, {"input_ids": tokens}, in_step=True)
        with override_forward_context(made):
            found = Forward(self).run(due)
        assert made.cudagraph_runtime_mode is mode
        expected = [float(min(floor, L)) for floor in floors]
        assert table.exit_layer.tolist() == expected
        return found.flatten().tolist()[:rows]


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that are replayed."""
    pretend_gpu(monkeypatch, 90)
    rehearse(monkeypatch)
    found: list[Graph] = []
    replay = Graph.replay
    monkeypatch.setattr(Graph, "replay", lambda graph: found.append(graph) or replay(graph))  # type: ignore[func-returns-value]
    monkeypatch.setattr(
        "river_vllm.model.forward.create_forward_context",
        lambda metadata, config, slot_mapping: ForwardContext({}, metadata, slot_mapping),
    )
    return found


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("mode", [CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL])
def test_no_graph_leaves_an_exit_out(
    mode: CUDAGraphMode, whole: bool, replays: list[Graph]
) -> None:
    """Exact steps replay stock vLLM's graph; exits, alone and beside exact rows, are made."""
    runner, tokens = Runner(whole), torch.zeros(4, dtype=torch.int32)
    runner.step(mode, tokens, NEVER, NEVER, NEVER)  # captured, as at a start
    set_cudagraph_capturing_enabled(False)
    try:
        assert runner.step(mode, tokens, NEVER, NEVER, NEVER) == [L, L, L]
        assert len(replays) == 1
        assert runner.step(mode, tokens, 1, 2, 2) == [1, 2, 2]
        assert len(replays) == 1
        # vLLM's graph runs all rows, and two of them run again.
        assert runner.step(mode, tokens, NEVER, 1, 2) == [L, 1, 2]
        assert len(replays) == 2
    finally:
        set_cudagraph_capturing_enabled(True)
