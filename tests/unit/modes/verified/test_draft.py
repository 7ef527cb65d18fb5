"""The draft loop: limits, ends, the stop rule, and rows that would not pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from river_vllm.costs import Costs
from river_vllm.modes.verified.depth import Acceptance, Depth, guessing_depth
from river_vllm.modes.verified.draft import (
    MOST_GUESSED,
    Draft,
    continuation,
    guess_alone,
    look_up,
    run,
)

CHEAP = Costs.fixed({"draft": {1: 0.03}, "backbone": {1: 0.09, 64: 0.1}})


def draft(row: int = 0, limit: int = 4, token: int = 7, **changes: Any) -> Draft:
    values = {"greedy": True, "rate": 0.95, "ends": (99,)} | changes
    return Draft(f"r{row}", row, 10 + row, token, limit, **values)


class River:
    """Draft passes that count up from the token they read, with a confidence by token."""

    def __init__(self, at_once: int = 1, **unsure: float) -> None:
        self.at_once = at_once
        self.calls: list[list[tuple[int, int]]] = []
        self.unsure = {int(token[1:]): value for token, value in unsure.items()}

    def __call__(self, going: Sequence[Draft]) -> list[list[tuple[int, float]]]:
        self.calls.append([(d.row, d.next_position) for d in going])
        found = [[d.token + 1 + i for i in range(self.at_once)] for d in going]
        return [[(t, self.unsure.get(t, 0.999)) for t in tokens] for tokens in found]


def go(drafts: list[Draft], river: River, price: float = 0.05) -> None:
    run(drafts, Depth(CHEAP, len(drafts), price), Acceptance(), river)


def test_limits_and_ends() -> None:
    river = River()
    drafts = [draft(0, 4), draft(1, 2), draft(2, 0), draft(3, 4, ends=(9,)), draft(4, ends=(7,))]
    go(drafts, river)
    assert [d.tokens for d in drafts] == [[8, 9, 10, 11], [8, 9], [], [8, 9], []]
    assert [[row for row, _ in call] for call in river.calls] == [[0, 1, 3], [0, 1, 3], [0], [0]]


def test_an_unsure_river_stops() -> None:
    river, one = River(t9=0.2), draft()
    go([one], river)
    assert one.tokens == [8, 9]  # the doubtful token is there already, and its row is nearly free
    assert one.confidences == [0.999, 0.2]


def test_a_token_that_does_not_pay_for_its_row_is_taken_back() -> None:
    dear = Costs.fixed({"draft": {1: 0.001}, "backbone": {1: 0.09, 2: 0.12}})
    river, one = River(t9=0.2), draft()
    run([one], Depth(dear, 1, 0.05), Acceptance(), river)
    assert one.tokens == [8]
    assert one.confidences == [0.999]


def test_sampled_tokens_are_believed_by_the_requests_own_rate() -> None:
    river, one = River(t8=0.2), draft(greedy=False, rate=0.9)
    go([one], river)
    assert one.confidences == [None] * 4
    assert abs(one.reach - 0.9**4) < 1e-9


def test_a_pass_may_bring_several_tokens_up_to_the_limit_and_the_end() -> None:
    river = River(at_once=3)
    drafts = [draft(0, 4), draft(1, 7), draft(2, 2), draft(3, 8, ends=(9,))]
    go(drafts, river)
    assert [d.tokens for d in drafts] == [[8, 9, 10, 11], [*range(8, 15)], [8, 9], [8, 9]]
    assert [[row for row, _ in call] for call in river.calls] == [[0, 1, 2, 3], [0, 1], [1]]


def test_what_a_text_repeats_is_guessed() -> None:
    known = np.array([3, 4, 5, 6, 8, 9, 3, 4], dtype=np.int32)
    one = draft(limit=4, token=5, known=known)
    assert one.guess(9) == ([6, 8, 9, 3], 3)
    assert one.guess(3) == ([6, 8, 9], 3)
    one.tokens.append(6)
    assert one.guess(9) == ([8, 9, 3], 4)
    assert one.guess(1) == ([8], 4)
    one.tokens.append(1)
    assert one.guess(9) == ([], 0)


def test_without_draft_passes_guesses_from_the_text_are_drafted() -> None:
    known = np.array([3, 4, 5, 6, 99, 9, 3, 4], dtype=np.int32)
    one, unheard = draft(0, token=5, known=known), draft(1, token=5, known=known)
    acceptance, depth = Acceptance(), Depth(CHEAP, 2, 0.05)
    for _ in range(9):
        acceptance.guessed("r1", 3, 1, 0)
    expected = look_up([one, unheard], depth, acceptance)
    assert one.tokens == [6, 99]  # the end of the answer
    assert one.guessed == 2
    assert expected == pytest.approx(0.6 + 0.36)
    assert unheard.tokens == []


def test_guesses_follow_the_last_draft() -> None:
    known = np.array([3, 4, 8, 9, 5, 6, 8, 9, 3, 4], dtype=np.int32)
    one, depth = draft(limit=6, token=7, known=known), Depth(CHEAP, 1, 0.05)
    # The river counts to 9 and is unsure of it. The last place with 8 and 9 goes on with 3 and 4.
    go([one], River(t9=0.2))
    look_up([one], depth, Acceptance())
    assert (one.tokens, one.guessed) == ([8, 9, 3, 4, 7, 8], 4)
    assert len(one.confidences) == 2
    # A draft that ended because its next token would not pay is not continued.
    other = draft(limit=6, token=7, known=known)
    other.tokens, other.confidences, other.limit = [8, 9], [0.9, 0.2], 2
    assert look_up([other], depth, Acceptance()) == other.guessed == 0


def test_a_text_that_repeats_itself_needs_no_draft_pass() -> None:
    known = np.array([3, 4, 5, *range(20, 40), 9, 3, 4], dtype=np.int32)
    acceptance, depth = Acceptance(), Depth(CHEAP, 1, 0.03)
    one = draft(limit=16, token=5, known=known)
    assert not guess_alone([one], depth, acceptance)
    assert (one.tokens, one.guessed, one.reach) == ([], 0, 1.0)
    for _ in range(9):
        acceptance.guessed("r0", 3, 8, 8)
    assert guess_alone([one], depth, acceptance)
    assert one.tokens == [*range(20, 36)]
    # Beside seven requests without guesses it pays less than drafts for all.
    others = [draft(row, token=1) for row in range(1, 8)]
    one = draft(limit=4, token=5, known=known)
    assert not guess_alone([one, *others], Depth(CHEAP, 8, 0.007), acceptance)


def test_a_guess_pays_for_its_row() -> None:
    known = np.array([3, 4, 5, 6, 8, 9, 3, 4], dtype=np.int32)
    dear = Costs.fixed({"draft": {1: 0.001}, "backbone": {1: 0.09, 2: 0.11, 3: 0.15}})
    one = draft(token=5, known=known)
    look_up([one], guessing_depth(dear, 1), Acceptance())
    assert one.tokens == [6]


def test_the_guesses_of_a_step_are_bounded() -> None:
    known = np.array([3, 4, 5, *range(20, 40), 9, 3, 4], dtype=np.int32)
    drafts = [draft(row, limit=15, token=5, known=known) for row in range(9)]
    look_up(drafts, Depth(CHEAP, 9, 1.0), Acceptance())
    assert sum(one.guessed for one in drafts) == MOST_GUESSED


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], 4, [4, 5, 1, 2]),
        ([1, 2, 3, 4, 5, 1, 2, 3], 1, [4]),
        ([1, 2, 3, 4, 5, 1, 2, 3], 0, []),
        ([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 1, [8]),  # the last place, not the first
        ([9, 2, 3, 7, 8, 2, 3], 2, [7, 8]),  # two tokens, where three are nowhere
        ([1, 2, 3, 9, 5, 2, 3, 8, 1, 2, 3], 1, [9]),  # three before two
        ([*range(40), 99, *range(30, 40), 98, *range(20, 40)], 1, [99]),  # and sixteen before ten
        ([*range(40), 99, *range(20, 40), 98, *range(20, 40)], 1, [98]),  # but not more than that
        ([6, 6, 6, 6], 3, [6]),
        ([1, 2, 3, 4], 3, []),
        ([1, 2], 3, []),
        ([], 3, []),
    ],
)
def test_continuation(text: list[int], most: int, expected: list[int]) -> None:
    assert continuation(np.array(text, dtype=np.int32), most).tokens == expected
