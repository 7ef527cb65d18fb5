"""From the rows of a step to its table, and back to one depth for each request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.modes.support import OFF, Batch, L, groups


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


@pytest.mark.parametrize(
    "river",
    [OFF, {"threshold": 1.0}, {"min_layers": L}, "nonsense"],
)
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


def test_past_the_limit_a_step_is_no_deeper() -> None:
    """Where later layers hold no backbone weights."""
    batch = Batch(prefill="sequence")
    batch.ask("c", OFF)
    table = batch.begin(("a", 4, 0), ("b", 1, 9), ("c", 1, 9))
    table.limit = 3
    table.close()
    assert batch.exits.depths(table) == [-3, 3, 3]


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


def test_the_rivers_head_makes_no_prompts_first_token() -> None:
    batch = Batch(prefill="sequence", lm_head="river")
    assert batch.head(("a", 1, 4), ("b", 4, 0)) == "backbone"
    assert batch.head(("a", 5, 0)) == "river"


def test_a_request_that_is_drafted_for_is_the_backbones() -> None:
    """With its drafts as more rows; beside one that leaves."""
    batch = Batch(verify=4)
    table = batch.begin(("drafted", 5, 9), ("exits", 1, 9), ("new", 4, 0))
    assert groups(table) == ["5 stay", "1 stay", "4 stay"]
    batch.ask("exits now", {"threshold": 0.5})
    table = batch.begin(("drafted", 5, 14), ("exits now", 1, 9))
    assert groups(table) == ["5 stay", "1 decide"]
    assert batch.finish(table, 3) == [L, 3]
