"""Ratios, intervals and verdicts from known times."""

from __future__ import annotations

from statistics import median

import pytest

from server.bench.figures import Report, interval, measure
from server.bench.options import CompareOptions
from server.bench.request import Answer
from server.bench.rounds import Comparison, Turn
from server.cli.endpoint import Endpoint

Pair = tuple[Turn, Turn]


def turn(scale: float, error: str | None = None, tokens: int | None = 4) -> Turn:
    """One request of four tokens whose times are multiples of ``scale``, a power of two."""
    answer = Answer(error, scale, 8 * scale, "length", 8, tokens)
    return Turn([answer], 8 * scale)


def report(*pairs: Pair, gates: tuple[str, ...] = ()) -> Report:
    options = CompareOptions.model_validate(
        {
            "a": "http://a",
            "b": "http://b",
            "comparison": {"fail_below": list(gates)},
            "sides": {},
            "requests": {},
            "output": {},
        }
    )
    endpoints = {side: Endpoint(f"http://{side}", "m") for side in "AB"}
    return measure(options, Comparison(endpoints, [{"A": a, "B": b} for a, b in pairs]))


GOOD, FAILED = turn(0.5), turn(0.5, "HTTP 503")
PAIRS = ((turn(0.5), turn(0.25)), (turn(1.0), turn(0.25)), (turn(2.0), turn(1.0)))


def test_ratios_are_exact_and_above_one_where_b_is_faster() -> None:
    found = report(*PAIRS)
    assert [ratio.metric for ratio in found.ratios] == ["ttft", "tpot", "e2e", "requests", "tokens"]
    for ratio in found.ratios:
        assert (ratio.rounds, ratio.median) == ([2.0, 4.0, 2.0], 2.0)
        assert (ratio.low, ratio.high) == (2.0, 4.0)
    assert (found.ratios[0].a, found.ratios[0].b) == (1000.0, 250.0)
    back = report(*[(b, a) for a, b in PAIRS])
    assert [ratio.median for ratio in back.ratios] == [0.5] * 5


def test_a_round_with_a_failure_is_in_no_ratio_and_is_counted() -> None:
    found = report((turn(0.5), turn(0.25)), (turn(0.5), turn(0.0625, "HTTP 503")))
    assert (found.rounds, found.rounds_counted) == (2, 1)
    assert all(ratio.rounds == [2.0] for ratio in found.ratios)
    assert found.sides["B"].errors == {"HTTP 503": 1}
    assert found.verdicts == []


@pytest.mark.parametrize(
    ("pairs", "gates", "verdict"),
    [
        (PAIRS, ("2.0",), None),
        (PAIRS, ("2.001",), "tpot: median ratio 2.000 is below 2.001"),
        (PAIRS, ("1", "ttft:3"), "ttft: median ratio 2.000 is below 3"),
        (((GOOD, turn(0.25)), (GOOD, FAILED)), ("1",), "B failed 1 requests and A 0"),
        (((GOOD, turn(0.25)), (FAILED, GOOD)), ("1",), None),
        (((turn(0.5, tokens=None), turn(0.25, tokens=None)),), ("1",), "tpot: could not be"),
        (((FAILED, turn(0.25)),), (), "no round"),
    ],
)
def test_gate(pairs: tuple[Pair, ...], gates: tuple[str, ...], verdict: str | None) -> None:
    """It fails on what was not measured, and where B fails more; nothing whole always fails."""
    found = report(*pairs, gates=gates)
    assert len(found.verdicts) == (verdict is not None)
    assert (verdict or "") in "".join(found.verdicts)
    if verdict == "no round":
        assert all(ratio.median is None and ratio.low is None for ratio in found.ratios)


def test_answers_of_different_length_are_pointed_out() -> None:
    found = report((turn(0.5), turn(0.25, tokens=40)))
    assert any("4.0 and 40.0 tokens" in text for text in found.warnings)


def test_interval_is_seeded_and_holds_the_median() -> None:
    values = [1.0, 1.1, 1.2, 1.3, 1.5, 1.6, 1.7, 1.9, 2.0]
    low, high = interval(values, 0.95, 3)
    assert (low, high) == interval(values, 0.95, 3)
    assert low is not None
    assert high is not None
    assert min(values) <= low < median(values) < high <= max(values)
    assert interval([1.25] * 9, 0.95, 0) == (1.25, 1.25)
    assert interval([1.0], 0.95, 0) == (None, None)
