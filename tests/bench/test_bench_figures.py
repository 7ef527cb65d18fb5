"""The arithmetic of figures on records with known times.

All times are sums of powers of two, so floating point holds them exactly and the tests compare
for equality.
"""

from __future__ import annotations

import random
import statistics

import pytest

from server.bench.measure.exit_depth import river_report
from server.bench.measure.level import measure_level
from server.bench.measure.slo import Slo, parse_slo
from server.bench.measure.statistics import distribution, percentile
from server.bench.measure.timing import TokenBasis, timing_of
from server.bench.record import Arrival, Outcome, Record

TIMES = (0.5, 0.625, 0.875, 1.875)
"""Gaps of 1/8, 1/4 and 1 second."""


def record(times=TIMES, tokens: int | None = 4, outputs=None, counted=None, **fields) -> Record:
    outputs = outputs or [True] * len(times)
    counted = counted or [None] * len(times)
    found = Record(
        index=0,
        sent=fields.pop("sent", 0.0),
        outcome=Outcome.COMPLETED,
        arrivals=[Arrival(*each) for each in zip(times, outputs, counted, strict=True)],
        finish_seconds=times[-1] if times else None,
        finish_reason="length",
        prompt_tokens=8,
        completion_tokens=tokens,
        asked_tokens=4,
    )
    found.ended = found.sent + (times[-1] if times else 0.25)
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def failed(sent: float, ended: float, outcome: Outcome = Outcome.FAILED) -> Record:
    error = "HTTP 503" if outcome is Outcome.FAILED else "ended without finish_reason"
    found = Record(0, sent, ended=ended)
    found.fail(error, "no room", outcome)
    return found


def test_one_token_per_chunk():
    timing = timing_of(record())
    assert timing.ttft == 0.5
    assert timing.e2e == 1.875
    assert timing.tpot == 1.375 / 3
    assert timing.itl == timing.chunk_gaps == [0.125, 0.25, 1.0]
    assert timing.basis is TokenBasis.ONE


def test_ttft_is_never_an_itl_sample():
    timing = timing_of(record())
    assert timing.ttft + sum(timing.itl) == timing.e2e
    assert len(timing.itl) == 4 - 1


def test_last_token_without_text_is_a_token():
    """An end-of-sequence token comes in a chunk with ``finish_reason`` and no text."""
    timing = timing_of(record(outputs=[True, True, True, False]))
    assert timing.basis is TokenBasis.ONE
    assert timing.itl == [0.125, 0.25, 1.0]
    assert timing.chunk_gaps == [0.125, 0.25]


def test_finish_chunk_without_a_token_ends_no_gap():
    timing = timing_of(record(tokens=3, outputs=[True, True, True, False]))
    assert timing.basis is TokenBasis.ONE
    assert timing.itl == [0.125, 0.25]
    assert timing.e2e == 1.875


def test_usage_in_every_chunk_spreads_each_gap_over_its_own_tokens():
    timing = timing_of(record(tokens=9, counted=[1, 3, 7, 9]))
    assert timing.basis is TokenBasis.REPORTED
    assert timing.itl == [0.0625] * 2 + [0.0625] * 4 + [0.5] * 2
    assert sum(timing.itl) == timing.e2e - timing.ttft
    assert timing.tpot == statistics.fmean(timing.itl)


def test_a_chunk_that_reports_no_new_token_ends_no_gap():
    timing = timing_of(record(tokens=3, counted=[1, 2, 2, 3]))
    assert timing.itl == [0.125, 1.25]


def test_several_tokens_per_chunk_without_their_numbers_use_the_mean():
    timing = timing_of(record(tokens=8))
    assert timing.basis is TokenBasis.AVERAGED
    assert timing.itl == [0.0625, 0.125, 0.5]
    assert timing.chunk_gaps == [0.125, 0.25, 1.0]
    assert timing.tpot == 1.375 / 7


def test_without_usage_nothing_per_token_is_claimed():
    timing = timing_of(record(tokens=None))
    assert (timing.tpot, timing.itl) == (None, [])
    assert timing.basis is TokenBasis.UNKNOWN
    assert timing.chunk_gaps == [0.125, 0.25, 1.0]


def test_one_token_has_no_tpot_and_no_itl():
    timing = timing_of(record(times=(0.5,), tokens=1))
    assert (timing.ttft, timing.e2e, timing.tpot, timing.itl) == (0.5, 0.5, None, [])


def test_ttft_waits_for_output_and_itl_counts_the_tokens_before_it():
    """The first token may be held back, as half of a character."""
    timing = timing_of(record(outputs=[False, True, True, True]))
    assert timing.ttft == 0.625
    assert timing.itl == [0.125, 0.25, 1.0]


def test_an_answer_without_text_has_a_ttft():
    timing = timing_of(record(times=(0.5,), tokens=1, outputs=[False]))
    assert timing.ttft == 0.5


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.COMPLETED])
def test_only_completed_requests_have_times(outcome: Outcome):
    assert timing_of(record(outcome=outcome)) is None


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_percentiles_agree_with_the_standard_library(count: int):
    """Its "inclusive" method is the same definition; the tolerance is rounding of one product."""
    samples = sorted(random.Random(count).random() for _ in range(count))
    expected = statistics.quantiles(samples, n=100, method="inclusive")
    for percent in (1, 50, 90, 95, 99):
        assert percentile(samples, percent) == pytest.approx(expected[percent - 1], rel=1e-12)


def test_distribution():
    found = distribution([4.0, 1.0, 2.0, 1.0])
    assert (found.count, found.mean, found.min, found.p50, found.max) == (4, 2.0, 1.0, 1.5, 4.0)
    assert found.std == statistics.pstdev([1, 1, 2, 4])
    assert distribution([7.0]).p99 == 7.0
    assert distribution([]) is None


def test_throughput_is_of_completed_requests_over_the_whole_duration():
    records = [record(), record(sent=1.0), failed(0.0, 0.25), failed(2.0, 4.0, Outcome.INCOMPLETE)]
    report = measure_level(records, 4.0)
    assert report.throughput.requests_per_s == 0.5
    assert report.throughput.output_tokens_per_s == 2.0
    assert report.throughput.input_tokens_per_s == 4.0
    assert report.throughput.total_tokens_per_s == 6.0
    counts = report.counts
    assert (counts.sent, counts.completed, counts.failed, counts.incomplete) == (4, 2, 1, 1)
    assert report.errors == {"HTTP 503": 1, "ended without finish_reason": 1}
    assert report.ttft_ms.count == 2


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.COMPLETED])
def test_what_did_not_complete_improves_no_figure(outcome: Outcome):
    """Very fast bad requests, with tokens and a depth of their own, change no figure of the rest
    for the better."""
    good = [record(), record(sent=1.0)]
    quick = record(times=(0.001953125,), tokens=1000, outcome=outcome, river={"tokens": 9})
    before = measure_level(good, 4.0, [parse_slo("ttft:1000")])
    after = measure_level([*good, *[quick] * 6], 4.0, [parse_slo("ttft:1000")])
    for field in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms", "chunk_gap_ms", "throughput", "tokens"):
        assert getattr(after, field) == getattr(before, field)
    assert after.river is None
    assert after.goodput.requests_per_s == before.goodput.requests_per_s
    assert after.goodput.share <= before.goodput.share


def test_all_failed_is_null_and_not_zero():
    report = measure_level([failed(0.0, 1.0)] * 3, 1.0, [parse_slo("ttft:1")])
    for field in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms", "throughput", "tokens", "goodput"):
        assert getattr(report, field) is None
    assert report.counts.failed == 3


def test_goodput_is_a_rate_and_a_share_of_what_should_have_completed():
    records = [record(), record(times=(2.0, 2.5, 3.0, 3.5)), failed(0.0, 0.5)]
    records += [record(outcome=Outcome.CANCELLED)]
    found = measure_level(records, 2.0, [parse_slo("ttft:500")]).goodput
    assert (found.good, found.requests_per_s, found.share) == (1, 0.5, 1 / 3)


@pytest.mark.parametrize(
    ("metric", "limit_ms", "met"),
    [
        ("ttft", 500, True),
        ("ttft", 499, False),
        ("e2e", 1875, True),
        ("e2e", 1874, False),
        ("tpot", 459, True),
        ("tpot", 458, False),
        ("itl", 925, True),  # p95 of 125, 250, 1000 is 250 + 0.9 · 750
        ("itl", 924, False),
    ],
)
def test_objectives(metric: str, limit_ms: float, met: bool):
    assert Slo(metric, limit_ms).met_by(timing_of(record())) is met


@pytest.mark.parametrize("metric", ["tpot", "itl"])
def test_a_figure_that_a_request_lacks_is_an_objective_missed(metric: str):
    assert not Slo(metric, 1e9).met_by(timing_of(record(times=(0.5,), tokens=1)))


def test_tokens_and_requests_in_flight():
    report = measure_level([record(), record(sent=1.0), record(sent=1.875)], 4.0)
    assert (report.tokens.output, report.tokens.asked, report.tokens.per_chunk) == (12, 12, 1.0)
    assert report.max_in_flight == 2
    assert report.sent_per_s == 2 / 1.875


def test_exit_depths_add_up():
    first = {"num_layers": 30, "tokens": 4, "exit_layers": {"3": 3, "30": 1}}
    second = {"num_layers": 30, "tokens": 4, "exit_layers": {"5": 4}}
    report = river_report([first, None, second])
    assert (report.answers, report.num_layers, report.tokens) == (2, 30, 8)
    assert report.exit_layers == {3: 3, 5: 4, 30: 1}
    assert report.mean_exit_layer == (9 + 30 + 20) / 8
    assert report.early_share == 7 / 8
    assert report.acceptance is None


def test_verified_mode_adds_up_drafts():
    fields = [{"mode": "verified", "drafted": 8, "accepted": 6}, {"drafted": 8, "accepted": 8}]
    report = river_report(fields)
    assert (report.drafted, report.accepted, report.acceptance) == (16, 14, 0.875)
    assert report.mean_exit_layer is None


@pytest.mark.parametrize("field", [{}, {"exit_layers": "x"}, {"exit_layers": {"a": 1, "2": "b"}}])
def test_a_river_object_of_another_shape_is_not_guessed_at(field: dict):
    report = river_report([field])
    assert (report.answers, report.tokens, report.mean_exit_layer) == (1, 0, None)


def test_no_river_no_report():
    assert river_report([None, None]) is None
