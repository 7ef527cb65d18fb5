"""CUDA graphs of passes that every row leaves at one depth: drafts, and exits at a fixed depth.

vLLM captures forwards that make no decision. These make theirs before they start. Draft passes that
follow one another are one graph, as those of the drafters that vLLM trains
(``v1/worker/gpu/spec_decode/target_dependent_ar/speculator.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from river_vllm.compat import CUDAGraphMode, init_logger
from river_vllm.step.table import Pass, Rows, Span, StepTable

logger = init_logger("vllm.river")
Outputs = TypeVar("Outputs")
ROWS = 32
"""Rows of a captured pass at most: with more of them, launches are not what takes its time."""
GRAPHS = 64
"""How many are kept at most; a request chooses the depth at which it leaves. The last ``ROWS`` are
for passes by themselves: chains differ in their length too."""


def capturable(runner: Any) -> bool:
    """Whether passes of ``runner`` can be captured: a replay calls no Python between two layers, as
    adapters, K/V connectors and the sums of several ranks need it."""
    config = runner.vllm_config
    return bool(
        runner.device.type == "cuda"
        and config.compilation_config.cudagraph_mode != CUDAGraphMode.NONE
        and config.parallel_config.world_size == 1
        and config.lora_config is None
        and config.kv_transfer_config is None
    )


class PassGraphs:
    """Runs passes by ``run``, and replays those of a kind that came before.

    The first pass of a kind, or chain of passes, runs by itself, which warms its kernels up. Then
    it is captured; a capture computes nothing.
    """

    def __init__(self, run: Callable[[Pass], torch.Tensor], length: int) -> None:
        """``length``: the longest sequence; attention kernels are chosen by it."""
        self._run = run
        self._length = length
        self._kept: dict[tuple[int, int, int], _Captured] = {}
        """By rows, depth, and passes of a chain, 0 for a pass by itself."""
        self._failed = False
        self._inside = False
        # In vLLM's own pool a draft pass would write over a step's output, which is still read.
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, due: Pass) -> torch.Tensor:
        """The hidden states of a pass, ``[rows, hidden]``, until the next pass of its kind."""
        return self.chain(due, 0, self._run)

    def chain(self, due: Pass, passes: int, run: Callable[[Pass], Outputs]) -> Outputs:
        """What ``run`` makes of a pass and of the ``passes`` − 1 that follow it, each a token
        further, without the host; until the next chain of its kind."""
        depth = _depth(due)
        if depth is None or self._inside:
            return run(due)
        kind = due.table.num_rows, depth, passes
        if kind in self._kept:
            return self._kept[kind].replay(due)
        if self._failed or len(self._kept) >= (GRAPHS - ROWS if passes else GRAPHS):
            return run(due)
        self._inside = True
        try:
            outputs = run(due)
            self._capture(kind, due, run)
        finally:
            self._inside = False
        return outputs

    def _capture(self, kind: tuple[int, int, int], due: Pass, run: Callable[[Pass], Any]) -> None:
        _, depth, passes = kind
        last = self._length - max(passes, 1)
        try:
            self._kept[kind] = _Captured(run, due, depth, last, self._pool)
        except Exception as error:  # a driver, a kernel or torch may refuse a capture
            self._failed = True
            logger.warning("River: draft passes run without CUDA graphs: %r", error)


class _Captured:
    """A graph, with its inputs and its output at fixed addresses."""

    def __init__(
        self, run: Callable[[Pass], Any], due: Pass, depth: int, last: int, pool: Any
    ) -> None:
        """``last``: the last position that the pass can have."""
        inputs, rows = _of(due)
        owners = [span.request for span in due.spans]
        # Only the longest sequence matters to a graph; the real ones are in device memory.
        spans = [Span(owner, last, 1) for owner in owners]
        self._depth = depth
        self._due = Pass(
            StepTable.forced(due.table.num_layers, owners, depth, rows.positions.device),
            spans,
            {**due.inputs, **{name: value.clone() for name, value in inputs.items()}},
            head=due.head,
            exact=due.exact,
            rows=replace(rows, **{name: getattr(rows, name).clone() for name in _CHANGING}),
        )
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._outputs = run(self._due)

    def replay(self, due: Pass) -> Any:
        inputs, rows = _of(due)
        assert self._due.rows is not None
        for name, value in inputs.items():
            self._due.inputs[name].copy_(value)
        for name in _CHANGING:
            getattr(self._due.rows, name).copy_(getattr(rows, name))
        self._graph.replay()
        due.table.exit_layer[:] = self._depth
        due.table.close()
        return self._outputs


_BY_ROW = ("input_ids", "positions")
"""Arguments of a model that a graph takes; pictures bring others."""
_CHANGING = ("positions", "requests", "lengths")
"""Parts of ``Rows`` that differ between two passes of one row a request."""


def _depth(due: Pass) -> int | None:
    """The depth at which every row leaves; None for a pass that is not to be captured."""
    table = due.table
    others = (value for name, value in due.inputs.items() if name not in _BY_ROW)
    if not 0 < len(due.spans) == table.num_rows <= ROWS or any(one is not None for one in others):
        return None
    return table.known_depth


def _of(due: Pass) -> tuple[dict[str, torch.Tensor], Rows]:
    """The pass's arguments that have a row for each of its rows, without vLLM's padding."""
    rows = due.rows or Rows.of(due.spans, due.inputs["input_ids"].device)
    return {name: due.inputs[name][..., : len(due.spans)] for name in _BY_ROW}, rows
