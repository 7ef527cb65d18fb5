"""Cost curves: straight between what was measured, never falling."""

from __future__ import annotations

import pytest

from river_vllm.verify import costs
from river_vllm.verify.costs import CostCurve, StepCosts, measure


def test_between_and_beyond_the_measured_rows() -> None:
    curve = CostCurve.of([(4, 0.8), (1, 0.2), (2, 0.4)])
    assert curve(0) == 0.0
    assert curve(1) == pytest.approx(0.2)
    assert curve(3) == pytest.approx(0.6)
    assert curve(10) == pytest.approx(0.8 + 6 * 0.2)


def test_a_noisy_point_cannot_pay_for_itself() -> None:
    curve = CostCurve.of([(1, 0.5), (2, 0.3), (4, 0.6)])
    assert curve(2) == curve(1) == 0.5


def test_one_point_is_a_price_per_row() -> None:
    assert CostCurve.of([(2, 0.4)])(6) == pytest.approx(0.4 + 4 * 0.2)


def test_measuring_runs_each_pass_at_every_number_of_rows_it_can_have() -> None:
    seen: dict[str, list[int]] = {"draft": [], "verify": []}
    found = measure(seen["draft"].append, seen["verify"].append, most_requests=3, most_rows=9)
    assert set(seen["draft"]) == {1, 2, 3}
    assert set(seen["verify"]) == {1, 2, 3, 4, 6, 8}
    assert seen["draft"].count(2) == costs.REPEATS
    assert found.draft.rows == (1, 2, 3)
    assert found.verify.rows == (1, 2, 3, 4, 6, 8)


def test_description_is_in_milliseconds() -> None:
    one = CostCurve.of([(1, 0.0251)])
    assert StepCosts(one, one).describe() == {"draft_ms": {"1": 25.1}, "verify_ms": {"1": 25.1}}
