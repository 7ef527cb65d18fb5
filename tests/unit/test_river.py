"""Which forward passes a step takes, and what a layer is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from river_vllm.model.forward import River
from river_vllm.step.table import Path, StepTable

L = 4
NEVER = 1 << 30


class Routed:
    """The forward pass in which rows may leave."""

    active = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.active = True
        try:
            yield
        finally:
            self.active = False


class Model:
    """A river whose router lets every free row leave after layer 1, and its forward passes."""

    def __init__(
        self,
        compiles: bool = False,
        resident: int = L,
        fetches: bool = False,
        dense: Any = None,
        linears: Any = (),
    ) -> None:
        self.passes: list[tuple[str, int]] = []
        """Of each pass the forward that it took, and its rows."""
        self.needed: list[int] = []
        self.routed: Any = Routed()
        self.residency: Any = SimpleNamespace(
            num_layers=L,
            resident=resident,
            offloads=resident < L,
            limit=L if fetches else resident,
            need=self.needed.append,
        )
        self.routed.within_compiled = compiles
        self.river = River(self, self.routed, self.residency, linears, dense)  # type: ignore[arg-type]
        self.rows = 0

    def decide(self, table: StepTable, layers_run: int, *_: Any) -> None:
        if layers_run >= table.limit:
            table.all_river()
        elif layers_run == 1 and table.has_active:
            table.leave(np.full(int(table.free.sum()), True), layers_run)

    def run(self, table: StepTable) -> list[float]:
        self.rows = table.num_rows
        found: list[float] = self.river.run(table, self.forward).flatten().tolist()
        return found

    def forward(self, part: StepTable | None = None) -> torch.Tensor:
        """Each row's output is how many backbone layers it ran."""
        rows = self.rows if part is None else part.num_rows
        self.passes.append(("routed" if self.routed.active else "vLLM's", rows))
        hidden = torch.zeros(rows, 1)
        for layer in range(L):
            self.river.route(layer, hidden, None)
            table = self.river.table
            if table.path is Path.BACKBONE:
                hidden += 1
            elif table.path is Path.MIXED:
                hidden = table.mixed(hidden, lambda x: x + 1, lambda x: x)
        return hidden


def step(*floors: int) -> StepTable:
    return StepTable(L, [1] * len(floors), [0.5] * len(floors), floors)


@pytest.mark.parametrize("compiles", [False, True])
def test_where_no_row_may_leave_the_pass_is_vllms(compiles: bool) -> None:
    model, table = Model(compiles), step(NEVER, L)
    assert model.run(table) == [L, L]
    assert model.passes == [("vLLM's", 2)]
    assert table.exit_layer.tolist() == [L, L]


@pytest.mark.parametrize("compiles", [False, True])
def test_where_all_rows_may_leave_it_is_the_routed_one(compiles: bool) -> None:
    model, table = Model(compiles), step(1, 1)
    assert model.run(table) == [1, 1]
    assert model.passes == [("routed", 2)]
    assert table.exit_layer.tolist() == [1, 1]


def test_without_a_compiler_one_pass_serves_both_kinds() -> None:
    model, table = Model(), step(NEVER, 1, NEVER)
    assert model.run(table) == [L, 1, L]
    assert model.passes == [("routed", 3)]
    assert table.exit_layer.tolist() == [L, 1, L]


def test_a_compiled_forward_runs_all_rows_and_the_routed_one_some_again() -> None:
    model, table = Model(compiles=True), step(NEVER, 1, NEVER, 1)
    table.head = "river"
    assert model.run(table) == [L, 1, L, 1]
    assert model.passes == [("vLLM's", 4), ("routed", 2)]
    assert table.exit_layer.tolist() == [L, 1, L, 1]
    assert model.river.table is table, "the LM head reads the whole step's"


def test_with_layers_out_of_memory_every_step_is_routed() -> None:
    model, table = Model(resident=2), step(NEVER, 1)
    assert model.run(table) == [2, 1]
    assert model.passes == [("routed", 2)]
    assert (table.exit_layer.tolist(), model.needed) == ([2, 1], [])


def test_a_layer_that_a_row_needs_is_fetched() -> None:
    model, table = Model(resident=2, fetches=True), step(NEVER, 1)
    assert model.run(table) == [L, 1]
    assert model.needed == [2, 3]
    model.run(step(1, 1))
    assert model.needed == [2, 3], "with all rows on the river nobody needs it"


@pytest.mark.parametrize("fetches", [False, True])
def test_what_is_no_step_leaves_after_the_resident_layers(fetches: bool) -> None:
    """Warm-up and dummy runs: they fetch nothing, however many there are."""
    model = Model(resident=2, fetches=fetches)
    model.run(step(1))
    model.river.rest()
    for _ in range(2):
        assert model.forward().flatten().tolist() == [2]
    assert model.needed == []


def test_a_step_that_fails_leaves_nothing_behind_for_the_next() -> None:
    model = Model(compiles=True)

    def fails(part: StepTable | None = None) -> torch.Tensor:
        model.river.route(1, torch.zeros(2, 1), None)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.river.run(step(1, 1), fails)
    assert model.run(step(NEVER, NEVER)) == [L, L]
    assert model.passes == [("vLLM's", 2)]


@pytest.mark.parametrize(
    ("exact", "packed", "taken"),
    [(False, False, "routed"), (True, False, "vLLM's"), (False, True, "vLLM's")],
)
def test_rivers_own_product_serves_steps_that_may_round_otherwise(
    exact: bool, packed: bool, taken: str
) -> None:
    """Where vLLM has left the weights as they were, since it has no product for several rows."""
    weight = torch.empty(0 if packed else 4)
    made = Model(compiles=True, dense=object(), linears=[[SimpleNamespace(weight=weight)]])
    table = step(NEVER, NEVER)
    table.exact = exact
    assert made.run(table) == [L, L]
    assert made.passes == [(taken, 2)]
    assert (table.dense is not None) is (taken == "routed")
    assert table.exit_layer.tolist() == [L, L]
