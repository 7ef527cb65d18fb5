"""Where leaving would not make the step shorter, its tokens stay and are counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.nn.functional import linear

from river_vllm.model.passes import Pass
from river_vllm.modes.exit import signed_depth
from tests.unit.modes.support import OFF, Batch, L, groups

HELD = signed_depth(L, decode=True, held=True)


@pytest.mark.parametrize("scope", ["token", "step", "batch"])
def test_up_to_the_limit_all_may_leave(scope: str) -> None:
    three = [("a", 1, 4), ("b", 1, 4), ("c", 1, 4)]
    assert groups(Batch(scope=scope).begin(*three)) == ["1 decide"] * 3
    batch = Batch(scope=scope, max_rows=2)
    assert groups(batch.begin(*three[:2])) == ["1 decide"] * 2
    assert groups(table := batch.begin(*three)) == ["1 held"] * 3
    assert batch.finish(table) == [HELD] * 3


@pytest.mark.parametrize("other", [OFF, {"threshold": 1.0}, {"min_layers": L}, "prompt"])
@pytest.mark.parametrize("scope", ["token", "step", "batch"])
def test_what_leaves_as_a_step_stays_beside_a_row_that_has_to(scope: str, other: Any) -> None:
    """That row reads the backbone's weights for all. It is not held: it could not leave."""
    batch = Batch(scope=scope)
    batch.ask("b", None if other == "prompt" else other)
    held = scope == "step"
    rows = ("b", 4, 0) if other == "prompt" else ("b", 1, 4)
    table = batch.begin(("a", 1, 4), rows)
    assert groups(table) == ["1 held" if held else "1 decide", f"{rows[1]} stay"]
    depth = -L if other == "prompt" else L
    assert batch.finish(table, *[] if held else [3]) == [HELD if held else 3, depth]


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize(
    ("scope", "river", "asked"),
    [
        ("step", None, "choose"),
        ("token", None, "choose"),
        ("token", OFF, "pays"),  # no step from which the other way could be learnt
    ],
)
def test_the_costs_say_whether_it_pays(scope: str, river: Any, asked: str, pays: bool) -> None:
    questions: list[Any] = []
    costs: Any = SimpleNamespace()
    for name in ("choose", "pays"):
        setattr(costs, name, lambda rows, name=name: questions.append((name, rows)) or pays)
    batch = Batch(scope=scope, max_rows="auto", costs=costs)
    batch.ask("b", river)
    found = groups(batch.begin(("a", 1, 4), ("b", 1, 4)))
    assert found[0] == ("1 decide" if pays else "1 held")
    batch.begin(("c", 4, 0))
    assert questions == [(asked, 2)], "a step of prompts asks nothing"


@pytest.mark.parametrize(
    ("river", "own", "depths", "kind"),
    [
        (OFF, False, (), "backbone"),
        (OFF, True, (), "verify"),
        (None, False, (4,), "river"),
        (None, False, (5,), None),  # a step that left late says little about leaving
    ],
)
def test_decode_steps_are_of_a_kind(
    batch: Batch, river: Any, own: bool, depths: Any, kind: Any
) -> None:
    """``own``: whether River's own bf16 product served the step."""
    batch.ask("a", river)
    found = []
    for rows, left in ((("a", 4, 0), ()), (("a", 1, 4), depths)):
        batch.finish(table := batch.begin(rows), *left)
        found.append(batch.exits.kind(Pass(table, (), {}, dense=linear if own else None)))
    assert found == [None, kind]


def test_what_has_left_once_leaves_again() -> None:
    batch = Batch(scope="step", max_rows=1)
    batch.step(("a", 1, 4), left=(3,))
    table = batch.begin(("a", 6, 0), ("b", 4, 0))
    assert groups(table) == ["4 stay", "1 at 3", "1 held", "4 stay"]


def test_prompts_that_leave_hold_nobody_and_stay_where_the_backbone_runs() -> None:
    """It would run them twice."""
    batch = Batch(scope="step", prefill="sequence", max_rows=1)
    assert groups(batch.begin(("a", 1, 4), ("b", 4, 0))) == ["1 decide", "4 decide"]
    batch.ask("exact", OFF)
    assert groups(batch.begin(("exact", 1, 4), ("c", 4, 0))) == ["1 stay", "4 stay"]
