"""The draft loop: limits, ends, the stop rule, and rows that would not pay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from river_vllm.costs import Costs
from river_vllm.verify.acceptance import Acceptance
from river_vllm.verify.depth import Depth
from river_vllm.verify.draft import Draft, run

CHEAP = Costs.fixed({"draft": {1: 0.03}, "backbone": {1: 0.09, 64: 0.1}})


def draft(row: int = 0, limit: int = 4, **changes: Any) -> Draft:
    values = {"greedy": True, "rate": 0.95, "ends": (99,)} | changes
    return Draft(f"r{row}", row, 10 + row, 7, limit, **values)


class River:
    """Draft steps that count up from the token they read, with a confidence by token."""

    def __init__(self, **unsure: float) -> None:
        self.calls: list[list[tuple[int, int]]] = []
        self.unsure = {int(token[1:]): value for token, value in unsure.items()}

    def __call__(self, going: Sequence[Draft]) -> tuple[list[int], list[float]]:
        self.calls.append([(d.row, d.next_position) for d in going])
        tokens = [d.token + 1 for d in going]
        return tokens, [self.unsure.get(token, 0.999) for token in tokens]


def go(drafts: list[Draft], river: River, price: float = 0.05) -> None:
    run(drafts, Depth(CHEAP, len(drafts), price), Acceptance(), river)


def test_each_step_reads_the_token_before_at_the_next_position() -> None:
    river, one = River(), draft()
    go([one], river)
    assert one.tokens == [8, 9, 10, 11]
    assert river.calls == [[(0, 10)], [(0, 11)], [(0, 12)], [(0, 13)]]


def test_limits_and_ends() -> None:
    river = River()
    drafts = [draft(0, 4), draft(1, 2), draft(2, 0), draft(3, 4, ends=(9,)), draft(4, ends=(7,))]
    go(drafts, river)
    assert [d.tokens for d in drafts] == [[8, 9, 10, 11], [8, 9], [], [8, 9], []]
    assert [[row for row, _ in call] for call in river.calls] == [[0, 1, 3], [0, 1, 3], [0], [0]]


def test_no_price_no_draft() -> None:
    river = River()
    go([draft()], river, price=0.0)
    assert river.calls == []


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


def test_a_request_that_is_never_believed_does_not_draft() -> None:
    dear = Costs.fixed({"draft": {1: 0.001}, "backbone": {1: 0.09, 2: 0.12}})
    river, drafts = River(), [draft(0), draft(1, rate=0.1)]
    run(drafts, Depth(dear, 2, 0.05), Acceptance(), river)
    assert drafts[0].tokens and not drafts[1].tokens


def test_sampled_tokens_are_believed_by_the_requests_own_rate() -> None:
    river, one = River(t8=0.2), draft(greedy=False, rate=0.9)
    go([one], river)
    assert one.confidences == [None] * 4
    assert abs(one.reach - 0.9**4) < 1e-9
