"""Which rows leave after which layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from river_vllm.router.batch import ExitUnit, StepBatch
from river_vllm.router.plan import Path
from tests.unit.router.support import L, Similarities, drive, router, states

LOW, MID, HIGH = 0.2, 0.6, 0.95


def rows_of(*tables: str) -> Similarities:
    """One letter per layer: ``l``, ``m`` or ``h``."""
    values = {"l": LOW, "m": MID, "h": HIGH}
    return [[values[letter] for letter in table] for table in tables]


def tokens(*thresholds: float, min_layers: int = 1) -> StepBatch:
    return StepBatch(
        len(thresholds), [ExitUnit(i, i + 1, t, min_layers) for i, t in enumerate(thresholds)]
    )


def test_each_token_leaves_on_its_own_similarity() -> None:
    batch = tokens(0.9, 0.9, 0.5, 0.99)
    river = drive(router(), batch, rows_of("lllhll", "lhllll", "llmlll", "hhhhhh"))
    assert batch.exit_layer.tolist() == [3, 1, 2, L]
    assert river == [set(), {1}, {1, 2}, {0, 1, 2}, {0, 1, 2}, {0, 1, 2}]


def test_a_token_may_leave_by_the_norm_of_its_state() -> None:
    """The test's states have norm l + 1 after l layers, in two features; s = 0 at a norm of √2."""
    batch = tokens(-0.2, -0.4, -0.6, 0.0, min_layers=2)
    settled = rows_of(*["hhhhhh"] * 4)
    drive(router(signal="norm"), batch, settled)
    #   s after 1, 2, 3 … layers: −0.17, −0.36, −0.48, falling: who does not leave at once stays
    assert batch.exit_layer.tolist() == [L, 2, 2, L]


def test_a_similarity_at_the_threshold_does_not_leave() -> None:
    """An exit takes a similarity above τ, so identical states stay at τ = 1."""
    batch = tokens(1.0)
    with (r := router()).step(batch):
        for layer in range(L):
            r.before_layer(layer, torch.ones(1, 8), None)
    assert batch.exit_layer.tolist() == [L]


def test_min_layers_hold_even_where_the_state_has_settled() -> None:
    batch = tokens(0.5, 0.5, min_layers=4)
    drive(router(), batch, rows_of("hhhhhh", "hhhhll"))
    assert batch.exit_layer.tolist() == [4, L]


def test_layers_below_every_minimum_cost_nothing() -> None:
    batch = tokens(0.5, min_layers=4)
    nothing: Any = None
    with (r := router()).step(batch):
        for layer in range(3):
            r.before_layer(layer, nothing, nothing)
        for layer in range(3, 5):
            r.before_layer(layer, torch.ones(1, 8), None)
        for layer in range(5, L):
            r.before_layer(layer, nothing, nothing)
    assert batch.exit_layer.tolist() == [4]


def test_batch_scope_leaves_when_the_last_one_would() -> None:
    table = rows_of("lhlhll", "llhhll", "llllhl")
    batch = tokens(0.9, 0.9, 0.9)
    assert drive(router("batch"), batch, table) == [set()] * L
    assert batch.exit_layer.tolist() == [L] * 3
    batch = tokens(0.9, 0.9)
    river = drive(router("batch"), batch, table[:2])
    assert batch.exit_layer.tolist() == [3, 3]
    assert river == [set()] * 3 + [{0, 1}] * 3


def test_together_waits_for_the_last_one_and_remembers_who_would_have_left() -> None:
    """The first row settles after layer 1 and not again; nobody leaves before the second does."""
    table = rows_of("lhllll", "lllhll")
    batch = StepBatch(2, [ExitUnit(i, i + 1, 0.9, 1) for i in range(2)], together=True)
    river = drive(router(), batch, table)
    assert batch.exit_layer.tolist() == [3, 3]
    assert river == [set()] * 3 + [{0, 1}] * 3


def test_together_with_one_that_never_settles_all_stay() -> None:
    batch = StepBatch(2, [ExitUnit(i, i + 1, 0.9, 1) for i in range(2)], together=True)
    assert drive(router(), batch, rows_of("lhhhhh", "llllll")) == [set()] * L
    assert batch.exit_layer.tolist() == [L, L]


def test_together_a_replay_keeps_its_own_depth() -> None:
    units = [ExitUnit(0, 1, -1.0, 2, forced=True), ExitUnit(1, 2, 0.9, 1)]
    batch = StepBatch(2, units, together=True)
    drive(router(), batch, rows_of("llllll", "lllhll"))
    assert batch.exit_layer.tolist() == [2, 3]


def test_a_unit_of_several_rows_takes_their_minimum() -> None:
    batch = StepBatch(5, [ExitUnit(0, 3, 0.9, 1), ExitUnit(3, 5, 0.9, 1)])
    table = rows_of("lhhhll", "lllhll", "lhhhhl", "lhhhhl", "lhhhhl")
    river = drive(router(), batch, table)
    assert batch.exit_layer.tolist() == [3, 1]
    assert river[1:4] == [{3, 4}, {3, 4}, {0, 1, 2, 3, 4}]


def test_rows_outside_every_unit_stay() -> None:
    batch = StepBatch(5, [ExitUnit(1, 2, 0.9, 1), ExitUnit(3, 4, 0.9, 1)])
    river = drive(router(), batch, rows_of("hhhhhh", "lhllll", "hhhhhh", "lllhll", "hhhhhh"))
    assert batch.exit_layer.tolist() == [1, 3]
    assert river == [set(), {1}, {1}, {1, 3}, {1, 3}, {1, 3}]


def test_nothing_may_leave_in_a_step_without_units() -> None:
    batch = StepBatch(2, [])
    assert drive(router(), batch, rows_of("hhhhhh", "hhhhhh")) == [set()] * L


@pytest.mark.parametrize("depth", [0, 1, 3, 5])
def test_forced_units_leave_at_their_layer_and_not_before(depth: int) -> None:
    batch = StepBatch(2, [ExitUnit(0, 1, -1.0, depth, forced=True), ExitUnit(1, 2, 0.9, 1)])
    river = drive(router(), batch, rows_of("hhhhhh", "llllhl"))
    assert batch.exit_layer.tolist() == [depth, 4]
    assert [0 in rows for rows in river] == [layer >= depth for layer in range(L)]


def test_forced_units_are_not_measured() -> None:
    def agree(values: torch.Tensor) -> torch.Tensor:
        raise AssertionError("measured")

    batch = tokens(-1.0, -1.0, min_layers=2)
    drive(router(agree=agree), batch, rows_of("llllll", "llllll"))
    assert batch.exit_layer.tolist() == [2, 2]


@pytest.mark.parametrize("forced_depth", [2, 4])
def test_replayed_tokens_keep_their_depth_in_batch_scope(forced_depth: int) -> None:
    """A preempted request is computed again as it was, whatever its neighbours do now."""
    batch = StepBatch(
        3,
        [
            ExitUnit(0, 1, -1.0, forced_depth, forced=True),
            ExitUnit(1, 2, 0.9, 1),
            ExitUnit(2, 3, 0.9, 1),
        ],
    )
    drive(router("batch"), batch, rows_of("llllll", "lllhll", "lllhll"))
    assert batch.exit_layer.tolist() == [forced_depth, 3, 3]


def test_a_state_that_is_not_a_number_never_leaves() -> None:
    batch = StepBatch(
        4, [ExitUnit(0, 1, -0.99, 1), ExitUnit(1, 3, -0.99, 1), ExitUnit(3, 4, 0.0, 1)]
    )
    with (r := router()).step(batch):
        for layer in range(L):
            hidden = torch.ones(4, 8)
            hidden[0], hidden[2] = torch.nan, 0.0
            r.before_layer(layer, hidden, None)
    assert batch.exit_layer.tolist() == [L, L, 1]


def test_padding_rows_belong_to_no_unit() -> None:
    """vLLM may run more rows than the step has tokens."""
    batch = tokens(0.9, 0.9)
    table = rows_of("lhllll", "lhllll", "llllll")
    with (r := router()).step(batch):
        for layer, (hidden, residual) in enumerate(states(table)):
            r.before_layer(layer, hidden, residual)
    assert batch.exit_layer.tolist() == [1, 1]


def test_the_agreed_similarities_decide() -> None:
    seen: list[torch.Tensor] = []

    def agree(values: torch.Tensor) -> torch.Tensor:
        seen.append(values)
        return torch.where(values > 0.9, 0.0, 1.0)

    batch = tokens(0.9, 0.9)
    drive(router(agree=agree), batch, rows_of("lhhhhh", "llllhh"))
    assert batch.exit_layer.tolist() == [L, 1]
    assert seen[0].dtype == torch.float32
    # Row 1 is no longer measured once it has left.
    assert [len(values) for values in seen] == [2, 1, 1, 1, 1]


def test_nothing_happens_outside_a_step() -> None:
    r = router()
    for layer in range(L):
        r.before_layer(layer, torch.ones(3, 8), None)
    assert r.plan.path is Path.BACKBONE


def test_a_step_that_fails_leaves_no_trace() -> None:
    r, batch = router(), tokens(-1.0, 0.9)
    with pytest.raises(ZeroDivisionError), r.step(batch):
        r.before_layer(0, torch.eye(2), None)
        r.before_layer(1, -torch.eye(2), None)
        assert r.plan.path is Path.MIXED
        raise ZeroDivisionError
    assert r.plan.path is Path.BACKBONE
    # The second token was still waiting; nothing may come of it outside the step.
    for layer in (2, 3):
        r.before_layer(layer, -torch.eye(2), None)
        assert r.plan.path is Path.BACKBONE
    following = tokens(0.9)
    drive(r, following, rows_of("llhlll"))
    assert following.exit_layer.tolist() == [2]


def test_a_step_does_not_see_the_states_of_the_one_before() -> None:
    r = router()
    drive(r, tokens(0.9, 0.9, 0.9), rows_of("llllll", "llllll", "llllll"))
    batch = StepBatch(2, [ExitUnit(0, 1, -1.0, 0, forced=True), ExitUnit(1, 2, 0.9, 0)])
    drive(r, batch, rows_of("llllll", "llllhl"))
    assert batch.exit_layer.tolist() == [0, 4]


def test_the_plan_is_on_the_backbone_after_a_step() -> None:
    r = router()
    drive(r, tokens(-1.0), rows_of("llllll"))
    assert (r.plan.path, r.plan.river_rows) == (Path.BACKBONE, None)


def test_a_measurement_splits_the_rows() -> None:
    """Where nobody is owed stock's bits the backbone product runs over its own rows only."""
    units = [ExitUnit(1, 2, -1.0, 1, token=(0, 7)), ExitUnit(2, 3, 1.0, 1, token=(0, 8))]
    river = router()
    with river.step(StepBatch(4, units)):
        river.before_layer(0, torch.ones(4, 2), None)
        river.before_layer(1, torch.ones(4, 2), None)
        assert river.plan.river_rows.tolist() == [1]
        assert river.plan.backbone_rows.tolist() == [0, 2, 3]
    assert river.plan.backbone_rows is None
    with river.step(StepBatch(2, [ExitUnit(1, 2, -1.0, 1)])):
        river.before_layer(1, torch.ones(2, 2), None)
        assert river.plan.river_rows.tolist() == [1]
        assert river.plan.backbone_rows is None


def test_past_the_limit_nobody_stays() -> None:
    """Rows of no unit too: a prompt's, an exact request's."""
    batch = StepBatch(4, [ExitUnit(i, i + 1, t, 1) for i, t in ((0, 0.9), (1, 1.0), (3, 0.9))])
    table = rows_of("lhllll", "hhhhhh", "hhhhhh", "llllhl")
    river = drive(r := router(), batch, table, limit=3)
    assert river == [set(), {0}, {0}, {0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}]
    assert (batch.exit_layer.tolist(), batch.deepest) == ([1, 3, 3], 3)
    assert r.plan.path is Path.BACKBONE, "the next step starts on the backbone"


def test_a_recorded_depth_beyond_the_limit_is_cut() -> None:
    batch = StepBatch(1, [ExitUnit(0, 1, -1.0, 5, forced=True)])
    drive(router(), batch, rows_of("llllll"), limit=2)
    assert batch.exit_layer.tolist() == [2]
