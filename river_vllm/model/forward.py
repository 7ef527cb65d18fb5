"""The river of one model: whose rows run in which precision, and in which forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Protocol

import torch

from river_vllm.compat import LinearBase
from river_vllm.model.compiled import RoutedForward
from river_vllm.model.linear import RiverDualLinearMethod
from river_vllm.model.residency import Residency
from river_vllm.step.router import Router
from river_vllm.step.table import Dense, Path, StepTable


class Forward(Protocol):
    """A forward pass of the model, over a whole step or over the rows of a part of it."""

    def __call__(self, part: StepTable | None = None) -> torch.Tensor: ...


class River:
    """Runs a model's steps. Not a module: the model's own tree stays as it was.

    Args:
        router: decides who leaves.
        routed: the forward pass in which rows may leave.
        residency: which layers hold their backbone weights.
        linears: the projections of each decoder layer, in the order of their indices.
        dense: a bf16 product of River's own.
    """

    def __init__(
        self,
        router: Router,
        routed: RoutedForward,
        residency: Residency,
        linears: Sequence[Sequence[LinearBase]],
        dense: Dense | None = None,
    ) -> None:
        self.num_layers = residency.num_layers
        self.router = router
        self.routed = routed
        self.residency = residency
        self._linears = linears
        self._dense = dense
        self.listed: torch.Tensor | None = None
        """The tokens that drafts are picked from, beside those of a request's own text: int64,
        ascending. Without them drafts are picked from every token."""
        self._idle = StepTable(self.num_layers, [], [], [])
        self.table = self._idle
        """What the projections and the LM head read; between steps one without rows."""
        self.rest()

    def run(self, table: StepTable, forward: Forward) -> torch.Tensor:
        """One forward pass, by the only place that chooses which.

        Where no row may leave, vLLM's own, as stock vLLM runs it. Where all may, where nothing is
        compiled, and where River's own bf16 product serves the step, the routed one. Else both: a
        compiled forward with stock's bits cannot branch, so it runs the step as stock vLLM would,
        and then the rows that may leave run again by themselves in the routed one. They write their
        own K/V over what the first pass left in their slots; the others belong to other sequences,
        or to earlier positions.

        Returns:
            ``[rows, hidden]``; ``table`` says how deep each row ran.
        """
        free = table.free
        table.dense = None if table.exact else self.dense
        own = table.dense is not None
        if not own and not free.any() and not self.residency.offloads:
            self.table = table
            output = forward()
            table.close()
        elif own or free.all() or not self.routed.within_compiled:
            with self._routing(table):
                output = forward()
        else:
            self.rest()
            output = forward()
            part = table.part()
            with self._routing(part):
                output[part.origin_rows] = forward(part)
            self.table = table
            table.take(part)
        return output

    @cached_property
    def dense(self) -> Dense | None:
        """River's own bf16 product, for steps that need not have stock vLLM's bits.

        None where vLLM has a product that serves several rows at once: it has then packed the
        weights its own way and let go of them as they were (``layers/utils.py``,
        ``dispatch_cpu_unquantized_gemm``).
        """
        held = self._linears[: self.residency.resident]
        plain = all(linear.weight.numel() for layer in held for linear in layer)
        return self._dense if plain else None

    def rest(self) -> None:
        """The step is over, its logits too: what comes next is no request's."""
        self._idle.limit = self.residency.resident
        self.table = self._idle

    def route(self, index: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Decide who runs layer ``index`` in which precision; both tensors ``[rows, hidden]``."""
        table = self.table
        if index == 0:
            table.path = Path.BACKBONE
        self.router.decide(table, index, hidden, residual)
        if index >= self.residency.resident and table.path is not Path.RIVER:
            self.residency.need(index)

    def route_next(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """``route``, for the layer that a compiled pass comes to."""
        self.routed.layer += 1
        self.route(self.routed.layer, hidden, residual)

    def linear(self, index: int, x: torch.Tensor, biased: bool) -> torch.Tensor:
        """Projection ``index`` of the layer that a compiled pass is in, on ``x``, with its bias
        where it adds it itself."""
        linear = self._linears[self.routed.layer][index]
        method: RiverDualLinearMethod = linear.quant_method
        return method.product(linear, x, linear.bias if biased else None)

    @contextmanager
    def _routing(self, table: StepTable) -> Iterator[None]:
        table.limit = self.residency.limit
        self.table = table
        with self.routed():
            yield
        table.close()
