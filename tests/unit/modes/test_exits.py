"""From the rows of a step to its table, and back to one depth for each request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.nn.functional import linear

from river_vllm.modes.exit import signed_depth
from river_vllm.step.table import Pass
from tests.unit.modes.support import OFF, Batch, L, groups


@pytest.fixture
def batch() -> Batch:
    """Of an engine in which each token leaves on its own."""
    return Batch()


def test_a_prompt_stays_chunk_by_chunk_and_its_tokens_decide(batch: Batch) -> None:
    batch.ask("a", prompt=8)
    assert groups(chunk := batch.begin(("a", 3, 0))) == ["3 stay"]
    assert batch.finish(chunk) == [-L], "depths of a prompt are negative"
    assert batch.step(("a", 5, 3)) == [-L]
    assert groups(token := batch.begin(("a", 1, 8))) == ["1 decide"]
    assert batch.finish(token, 5) == [5]


def test_requests_keep_the_batchs_order_and_their_own_settings(batch: Batch) -> None:
    batch.ask("a", {"threshold": 0.25, "min_layers": 7})
    table = batch.begin(("b", 4, 0), ("c", 1, 5), ("a", 1, 6))
    assert groups(table) == ["4 stay", "1 decide", "1 decide"]
    assert table.request.tolist() == [0, 1, 2]
    assert table.threshold[1:].tolist() == pytest.approx([0.9, 0.25])
    assert table.floor[1:].tolist() == [2, 7]
    assert (table.num_rows, table.num_layers, table.scope) == (6, L, "token")
    assert batch.finish(table, 3, 12) == [-L, 3, 12]


@pytest.mark.parametrize("river", [OFF, {"threshold": 1.0}, {"min_layers": L}, "nonsense"])
def test_a_token_that_may_not_leave_stays(batch: Batch, river: Any) -> None:
    batch.ask("a", river)
    assert groups(table := batch.begin(("a", 1, 4))) == ["1 stay"]
    assert batch.finish(table) == [L]


def test_settings_are_read_when_a_request_is_first_met(batch: Batch) -> None:
    batch.step(("a", 4, 0))
    batch.ask("a", OFF)
    assert groups(batch.begin(("a", 1, 4))) == ["1 decide"]
    batch.requests.forget(["a", "never met"])
    assert groups(batch.begin(("a", 1, 4))) == ["1 stay"]


@pytest.mark.parametrize("river", [OFF, {"threshold": 1.0}])
def test_prompts_leave_as_a_whole_under_sequence_prefill(river: Any) -> None:
    batch = Batch(prefill="sequence")
    batch.ask("c", river)
    table = batch.begin(("a", 1, 5), ("b", 4, 0), ("c", 4, 0))
    assert groups(table) == ["1 decide", "4 decide", "4 stay"]
    assert batch.finish(table, 5, 3) == [5, -3, -L]


@pytest.mark.parametrize(
    ("rows", "head"),
    [
        ([("a", 1, 4), ("b", 1, 9)], "river"),
        ([("a", 6, 0)], "backbone"),  # a prompt's rows run the backbone
        ([("a", 1, 4), ("exact", 1, 4)], "backbone"),
        ([("a", 1, 4), ("scored", 1, 4)], "backbone"),
    ],
)
def test_the_rivers_head_serves_steps_of_tokens_that_may_leave(rows: Any, head: str) -> None:
    batch = Batch(lambda request: request.params.logprobs is not None, lm_head="river")
    batch.ask("exact", OFF)
    batch.ask("scored", logprobs=2)
    assert batch.head(*rows) == head
    assert Batch(verify=4).head(("a", 1, 4)) == "backbone", "only drafts have the head"
    prompts = Batch(prefill="sequence", lm_head="river")
    assert prompts.head(("a", 1, 4), ("b", 4, 0)) == "backbone", "nor has a prompt's first token"


def test_a_request_that_is_drafted_for_is_the_backbones() -> None:
    """With its drafts as more rows; beside one that leaves."""
    batch = Batch(verify=4)
    table = batch.begin(("drafted", 5, 9), ("exits", 1, 9), ("new", 4, 0))
    assert groups(table) == ["5 stay", "1 stay", "4 stay"]
    batch.ask("exits now", {"threshold": 0.5})
    table = batch.begin(("drafted", 5, 14), ("exits now", 1, 9))
    assert groups(table) == ["5 stay", "1 decide"]
    assert batch.finish(table, 3) == [L, 3]


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


def test_tokens_leave_where_they_left(batch: Batch) -> None:
    for position, depth in ((4, 3), (5, L), (6, 5)):
        batch.step(("a", 1, position), left=(depth,))
    # Again from its start, in one go, up to the token that follows.
    table = batch.begin(("a", 8, 0))
    assert groups(table) == ["4 stay", "1 at 3", "1 stay", "1 at 5", "1 decide"]
    assert batch.finish(table, 3, 5, 8) == [8]
    # The new depth is the one that is kept next time.
    assert groups(batch.begin(("a", 4, 5))) == ["1 stay", "1 at 5", "1 at 8", "1 decide"]


def test_what_of_a_prompt_was_cached_has_no_depth() -> None:
    batch = Batch(prefill="sequence")
    batch.ask("a", prompt=8)
    batch.step(("a", 4, 4), left=(6,))
    assert groups(batch.begin(("a", 8, 0))) == ["4 decide", "4 at 6"]


@pytest.mark.parametrize(("prefill", "new"), [("backbone", "stay"), ("sequence", "decide")])
def test_what_a_session_has_said_leaves_where_it_left(prefill: str, new: str) -> None:
    """vLLM takes it into the next prompt, of streamed input."""
    batch = Batch(prefill=prefill)
    batch.ask("a", prompt=4)
    batch.step(("a", 4, 0), left=() if prefill == "backbone" else (5,))
    batch.step(("a", 1, 4), left=(3,))
    batch.ask("a", prompt=9)
    table = batch.begin(("a", 4, 5))
    assert groups(table) == [f"4 {new}"]
    batch.finish(table, *(() if prefill == "backbone" else (7,)))
    heard = "4 stay" if prefill == "backbone" else "4 at 5"
    rest = "4 stay" if prefill == "backbone" else "4 at 7"
    assert groups(batch.begin(("a", 9, 0))) == [heard, "1 at 3", rest]
