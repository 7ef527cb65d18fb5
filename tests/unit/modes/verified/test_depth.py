"""How far to draft: against a search over every depth, and where it must not draft at all."""

from __future__ import annotations

import pytest

from river_vllm.costs import Costs
from river_vllm.modes.verified.depth import (
    CONFIDENCE_PRIOR,
    GUESS_PRIOR,
    PRIOR,
    Acceptance,
    best_depth,
)

FLAT = Costs.fixed({"draft": {1: 0.03, 32: 0.04}, "backbone": {1: 0.09, 8: 0.1}})
"""As measured: a draft step is a third of the backbone's, rows of a pass are almost free."""
STEEP = Costs.fixed({"draft": {1: 0.09}, "backbone": {1: 0.09}})
"""A draft step as dear as the backbone, and every row paid for."""


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.96])
@pytest.mark.parametrize("most", [1, 4, 8])
def test_price_is_the_best_of_all_depths(rate: float, most: int) -> None:
    def price(k: int) -> float:
        tokens = sum(rate**j for j in range(k + 1))
        return (k * FLAT.seconds("draft", 1) + FLAT.seconds("backbone", 1 + k)) / tokens

    found = best_depth(FLAT, [rate], [most])
    assert found.price == pytest.approx(min(price(k) for k in range(most + 1)))
    assert found.price < price(0)


def test_no_draft_where_it_does_not_pay() -> None:
    assert best_depth(STEEP, [0.99], [8]).price == 0.0
    assert best_depth(FLAT, [0.05], [8]).price == 0.0
    assert best_depth(FLAT, [0.96], [0]).price == 0.0
    assert best_depth(FLAT, [], []).price == 0.0


def test_many_rows_end_it() -> None:
    """From some number of requests on, every row of the pass costs its share."""
    loaded = Costs.fixed({"draft": {1: 0.03, 32: 0.9}, "backbone": {1: 0.09, 8: 0.1, 32: 0.4}})
    assert best_depth(loaded, [0.96] * 2, [4] * 2).price > 0
    assert best_depth(loaded, [0.96] * 32, [4] * 32).price == 0.0


def test_what_is_worth_a_row_and_what_a_step() -> None:
    depth = best_depth(FLAT, [0.9], [4])
    assert depth.worth_verifying(0, 0.9)
    assert not depth.worth_verifying(0, 0.0)
    assert depth.worth_drafting(1, [0.9])
    assert not depth.worth_drafting(1, [0.2])
    assert not depth.worth_drafting(1, [])


def test_a_verifying_pass_of_another_kind_is_what_counts() -> None:
    """Where stock's pass over several rows takes as many times that of one."""
    stock = {1: 0.09, 8: 0.72}
    assert best_depth(Costs.fixed({"backbone": stock, "draft": {1: 0.03}}), [0.9], [4]).price == 0.0
    both = Costs.fixed({"backbone": stock, "draft": {1: 0.03}, "verify": {1: 0.09, 8: 0.1}})
    depth = best_depth(both, [0.9], [4])
    assert depth.price > 0
    assert depth.worth_verifying(1, 0.9)
    # Beside a request that is to have stock vLLM's bits the pass is stock's.
    assert best_depth(both, [0.9, 0.9], [4, 0], exact=True).price == 0.0


def test_a_request_that_rejects_is_told_from_one_that_keeps() -> None:
    acceptance = Acceptance()
    for _ in range(20):
        acceptance.verified("bad", [0.6, 0.6, 0.6], kept=0)
        acceptance.verified("good", [0.999, 0.999], kept=2)
    assert acceptance.rate("bad") < 0.2
    assert acceptance.rate("good") > 0.9
    assert 0.2 < acceptance.rate("new") < 0.9
    assert acceptance.likelihood(0.6) < 0.4
    assert acceptance.likelihood(0.999) > 0.99


def test_tokens_after_the_first_rejected_one_say_nothing() -> None:
    """The backbone never judged them: their own context was wrong."""
    one, other = Acceptance(), Acceptance()
    one.verified("a", [0.6, 0.6], kept=1)
    other.verified("a", [0.6, 0.6, 0.1, 0.1], kept=1)
    assert one.rate("a") == other.rate("a")
    assert other.likelihood(0.1) == CONFIDENCE_PRIOR[0]
    one.verified("b", [None, None], kept=1)
    assert one.likelihood(0.75) == pytest.approx(CONFIDENCE_PRIOR[3]), "nor sampled ones of it"


def test_all_that_was_learnt_fades() -> None:
    acceptance = Acceptance()
    for _ in range(100):
        acceptance.verified("a", [0.6], kept=0)
        acceptance.passed("a", 3, tried=2, right=1)
    assert acceptance.guesses_found("a") == pytest.approx(1.0, abs=0.05)
    assert acceptance.rate("a") < 0.1 and acceptance.likelihood(0.6) < 0.1
    for _ in range(1000):
        acceptance.fade()
    assert acceptance.rate("a") == pytest.approx(PRIOR, abs=0.01)
    assert acceptance.likelihood(0.6) == pytest.approx(CONFIDENCE_PRIOR[2], abs=0.01)
    assert acceptance.guess_rate("a", 3) == pytest.approx(GUESS_PRIOR[1], abs=0.01)
    assert acceptance.guesses_found("a") == pytest.approx(0.0, abs=0.01)


def test_right_guesses_make_draft_passes_cheaper() -> None:
    without, found = (best_depth(FLAT, [0.9], [8], found=n) for n in (0.0, 3.0))
    assert found.price < without.price
    assert found.passes >= without.passes


def test_ended_requests_leave_nothing() -> None:
    acceptance = Acceptance()
    acceptance.verified("a", [0.6] * 3, kept=0)
    acceptance.forget(["a", "never seen"])
    assert acceptance.rate("a") == acceptance.rate("new")
