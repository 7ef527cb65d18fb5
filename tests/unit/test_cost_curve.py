"""A curve through timings of which some are wrong: its shape, what it drops, what it learns."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from river_vllm.cost_curve import MEASURED, CostCurve, isotonic

ROWS = (1, 2, 4, 8, 16, 32)


def test_straight_between_points_and_beyond_them() -> None:
    curve = CostCurve({4: 0.8, 2: 0.6, 16: 2.0})
    assert [curve(rows) for rows in (0, 2, 3, 4, 10, 16)] == pytest.approx(
        [0.0, 0.6, 0.7, 0.8, 1.4, 2.0]
    )
    assert curve(1) == pytest.approx(0.5)
    assert curve(20) == pytest.approx(2.4)


def test_beyond_the_points_a_row_takes_no_more_than_its_share() -> None:
    curve = CostCurve({2: 0.2, 4: 0.45})
    assert curve(8) == pytest.approx(0.9)
    assert curve(1) == pytest.approx(0.1)


def test_one_point_is_a_price_per_row() -> None:
    curve = CostCurve({2: 0.4})
    assert [curve(rows) for rows in (1, 2, 6)] == pytest.approx([0.2, 0.4, 1.2])


@pytest.mark.parametrize("seed", range(200))
def test_it_never_falls_whatever_was_timed_and_observed(seed: int) -> None:
    dice = random.Random(seed)
    points = dice.sample(range(1, 65), dice.randint(1, 8))
    curve = CostCurve({rows: dice.uniform(0.001, 1.0) for rows in points}, dice.random() < 0.5)
    for _ in range(dice.randint(0, 40)):
        curve.observe(dice.randint(1, 80), 10 ** dice.uniform(-4, 1), dice.randint(0, 60))
    found = [curve(rows) for rows in range(100)]
    assert all(low <= high + 1e-12 for low, high in itertools.pairwise(found))
    assert found[1] > 0


def test_pooling_is_the_nearest_that_does_not_fall() -> None:
    assert isotonic([1, 2, 3], [1, 1, 1]) == [1, 2, 3]
    assert isotonic([3, 1, 2, 5], [1, 1, 1, 1]) == [2, 2, 2, 5]
    assert isotonic([4, 1], [3, 1]) == [3.25, 3.25]
    assert isotonic([1, 5, 4, 3], [1, 1, 1, 1]) == [1, 4, 4, 4]
    assert isotonic([], []) == []


def test_small_contradictions_are_shared_by_weight() -> None:
    curve = CostCurve({1: 0.10, 2: 0.09, 4: 0.12})
    assert curve.contradicted == frozenset()
    assert curve(1) == curve(2) == pytest.approx(0.095)


@pytest.mark.parametrize("factor", [0.1, 10.0])
@pytest.mark.parametrize("wrong", ROWS)
@pytest.mark.parametrize("per_row", [0.0, 0.02, 10.0])
def test_a_point_that_contradicts_the_others_is_left_out(
    per_row: float, wrong: int, factor: float
) -> None:
    true = {rows: 1.0 + per_row * rows for rows in ROWS}
    curve = CostCurve({**true, wrong: factor * true[wrong]})
    assert curve.contradicted == {wrong}
    assert curve.span == {1: (2, math.inf), 32: (0, 16)}.get(wrong, (0, math.inf))
    assert [curve(rows) for rows in ROWS] == pytest.approx(list(true.values()))


def test_where_two_sets_weigh_the_same_the_cheaper_or_the_dearer_is_believed() -> None:
    points = {1: 1.0, 2: 10.0}
    assert CostCurve(points).contradicted == {2}
    assert CostCurve(points, dear=True).contradicted == {1}
    low = {1: 0.1, 2: 1.0}
    assert CostCurve(low).contradicted == {2}
    assert CostCurve(low, dear=True).contradicted == {1}


@pytest.mark.parametrize("rows", [1, 3, 8, 20, 40])
@pytest.mark.parametrize("change", [0.4, 3.0])
def test_it_follows_what_is_observed(rows: int, change: float) -> None:
    curve = CostCurve({r: 1.0 + 0.1 * r for r in ROWS})
    wanted = change * curve(rows)
    for _ in range(300):
        curve.observe(rows, wanted)
    assert curve(rows) == pytest.approx(wanted, rel=0.02)


def test_what_is_observed_says_little_about_other_numbers_of_rows() -> None:
    curve = CostCurve({r: 1.0 + 0.1 * r for r in ROWS})
    for _ in range(30):
        curve.observe(32, 2.0 * 4.2)
    assert curve(1) == pytest.approx(1.1, rel=0.01)
    assert curve(32) > 6.0


def test_a_wrong_point_is_put_right_by_what_is_observed_near_it() -> None:
    curve = CostCurve({1: 1.0, 2: 11.0, 4: 1.2, 8: 1.4})
    for _ in range(300):
        curve.observe(3, 1.15)
    assert curve.contradicted == frozenset()
    assert curve(3) == pytest.approx(1.15, rel=0.01)
    assert curve(2) == pytest.approx(1.07, rel=0.1)


@pytest.mark.parametrize("seconds", [1e-6, 1e6])
@pytest.mark.parametrize("steps", [1, 100_000])
def test_one_observation_cannot_set_a_point(seconds: float, steps: int) -> None:
    """Neither a fresh point nor one that nothing was heard of for long."""
    curve = CostCurve(dict.fromkeys(ROWS, 1.0))
    curve.observe(4, seconds, steps)
    bound = 2 ** (1 / MEASURED) if steps == 1 else 2**0.25
    assert 1 / bound <= curve(4) <= bound


def test_later_observations_outweigh_what_was_measured_elsewhere() -> None:
    """Three times as slow for one row: dearer than what 32 rows took at the start."""
    curve = CostCurve({r: 1.0 + 0.01 * r for r in ROWS})
    for _ in range(200):
        curve.observe(1, 3.0)
    assert curve(1) == pytest.approx(3.0, rel=0.03)
    assert curve(2) >= curve(1)
