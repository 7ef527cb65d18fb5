"""A request that is computed again takes the depths that it had."""

from __future__ import annotations

import pytest

from tests.unit.modes.support import Batch, L, groups


def test_tokens_leave_where_they_left(batch: Batch) -> None:
    for position, depth in ((4, 3), (5, L), (6, 5)):
        batch.step(("a", 1, position), left=(depth,))
    # Again from its start, in one go, up to the token that follows.
    table = batch.begin(("a", 8, 0))
    assert groups(table) == ["4 stay", "1 at 3", "1 stay", "1 at 5", "1 decide"]
    assert batch.finish(table, 3, 5, 8) == [8]
    # The new depth is the one that is kept next time.
    assert groups(batch.begin(("a", 4, 5))) == ["1 stay", "1 at 5", "1 at 8", "1 decide"]


def test_chunks_start_where_they_start(batch: Batch) -> None:
    for position, depth in ((4, 3), (5, 4), (6, 5)):
        batch.step(("a", 1, position), left=(depth,))
    assert batch.step(("a", 5, 0), left=(3,)) == [3]
    assert groups(table := batch.begin(("a", 2, 5))) == ["1 at 4", "1 at 5"]
    assert batch.finish(table, 4, 5) == [5]


def test_requests_do_not_share_their_depths(batch: Batch) -> None:
    batch.step(("a", 1, 4), ("b", 1, 4), left=(3, 7))
    assert groups(batch.begin(("b", 1, 4), ("a", 1, 4))) == ["1 at 7", "1 at 3"]
    batch.requests.forget(["a"])
    assert groups(batch.begin(("a", 1, 4), ("b", 1, 4))) == ["1 decide", "1 at 7"]


def test_prompts_that_left_leave_again() -> None:
    batch = Batch(prefill="sequence")
    batch.ask("a", prompt=8)
    for position, depth in ((0, 3), (2, L), (4, 5)):
        batch.step(("a", 2, position), left=(depth,))
    # In one piece now; the last two rows are new.
    table = batch.begin(("a", 8, 0))
    assert groups(table) == ["2 at 3", "2 stay", "2 at 5", "2 decide"]
    assert batch.finish(table, 3, 5, 7) == [-7]
    batch.step(("a", 1, 8), left=(6,))
    assert groups(batch.begin(("a", 3, 6))) == ["2 at 7", "1 at 6"]


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
