"""How far to draft: against a search over every depth, and where it must not draft at all."""

from __future__ import annotations

import pytest

from river_vllm.costs import Costs
from river_vllm.modes.verified.depth import best_depth

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
