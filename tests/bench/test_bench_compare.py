"""Comparison of two endpoints: pairing, ratios, interval, verdict."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from statistics import median

import pytest

from server.bench.body import BodyOptions
from server.bench.compare.bootstrap import median_interval
from server.bench.compare.ratios import measure_comparison
from server.bench.compare.rounds import Comparison, Round
from server.bench.datasets import RandomWords, Span
from server.bench.load import Level, LevelRun
from server.bench.record import Arrival, Outcome, Record
from server.bench.settings import CompareSettings, Gate, RequestSettings, Target

QUICK = ("--prompt-words", "3", "--output-tokens", "8")


def run(scale: float, ok: bool = True) -> LevelRun:
    """One request of four tokens whose times are multiples of ``scale``, a power of two."""
    record = Record(0, 0.0, ended=8 * scale, prompt_tokens=8, completion_tokens=4)
    if ok:
        record.outcome = Outcome.COMPLETED
        record.arrivals = [Arrival(at * scale, True) for at in (1, 2, 4, 8)]
        record.finish_seconds = 8 * scale
    else:
        record.fail("HTTP 503", "no room")
    return LevelRun(Level(concurrency=1), [record])


def settings(*gates: Gate) -> CompareSettings:
    dataset = RandomWords(Span(1, 1), Span(4, 4), 0)
    requests = RequestSettings(dataset, BodyOptions(), 0, 1.0, True)
    a, b = Target("http://a/v1", "m", None), Target("http://b/v1", "m", None)
    return CompareSettings(a, b, requests, 1, 1, 3, 0, gates=gates)


def comparison(*rounds: tuple[LevelRun, LevelRun]) -> Comparison:
    items = [Round(("A", "B"), {"A": a, "B": b}) for a, b in rounds]
    return Comparison({}, items)


def test_ratios_are_exact_and_above_one_where_b_is_faster():
    found = comparison((run(0.5), run(0.25)), (run(1.0), run(0.25)), (run(2.0), run(1.0)))
    report = measure_comparison(settings(), found)
    assert [ratio.metric for ratio in report.ratios] == [
        "ttft",
        "itl",
        "tpot",
        "e2e",
        "requests",
        "tokens",
    ]
    for ratio in report.ratios:
        assert (ratio.rounds, ratio.median) == ([2.0, 4.0, 2.0], 2.0)
        assert (ratio.low, ratio.high) == (2.0, 4.0)
    ttft = report.ratios[0]
    assert (ttft.a, ttft.b) == (1000.0, 250.0)


def test_swapping_the_sides_inverts_the_ratios():
    pairs = [(run(0.5), run(0.25)), (run(1.0), run(0.25)), (run(2.0), run(1.0))]
    there = measure_comparison(settings(), comparison(*pairs))
    back = measure_comparison(settings(), comparison(*[(b, a) for a, b in pairs]))
    for one, other in zip(there.ratios, back.ratios, strict=True):
        assert one.median == 1 / other.median


def test_a_round_with_a_failure_is_in_no_ratio_and_is_counted():
    found = comparison((run(0.5), run(0.25)), (run(0.5), run(0.0625, ok=False)))
    report = measure_comparison(settings(), found)
    assert (report.rounds, report.rounds_counted) == (2, 1)
    assert all(ratio.rounds == [2.0] for ratio in report.ratios)
    assert report.sides["B"].counts.failed == 1
    assert any("1 of 2 rounds" in warning for warning in report.warnings)
    assert report.verdicts == []


@pytest.mark.parametrize(("least", "fails"), [(2.0, False), (2.001, True)])
def test_gate(least: float, fails: bool):
    report = measure_comparison(settings(Gate("tpot", least)), comparison((run(0.5), run(0.25))))
    assert bool(report.verdicts) is fails


def test_gate_fails_where_b_fails_more():
    found = comparison((run(0.5), run(0.25)), (run(0.5), run(0.25, ok=False)))
    (verdict,) = measure_comparison(settings(Gate("tpot", 1.0)), found).verdicts
    assert "B failed 1 requests and A 0" in verdict
    found = comparison((run(0.5), run(0.25)), (run(0.5, ok=False), run(0.25)))
    assert measure_comparison(settings(Gate("tpot", 1.0)), found).verdicts == []


def test_gate_fails_on_what_was_not_measured():
    pair = (run(0.5), run(0.25))
    for side in pair:
        side.records[0].completion_tokens = None
    report = measure_comparison(settings(Gate("tpot", 1.0)), comparison(pair))
    assert "tpot: could not be measured" in report.verdicts[0]
    assert next(ratio for ratio in report.ratios if ratio.metric == "tpot").median is None


def test_nothing_whole_is_a_failure_with_or_without_a_gate():
    report = measure_comparison(settings(), comparison((run(0.5, ok=False), run(0.25))))
    assert "no round" in report.verdicts[0]
    assert all(ratio.median is None and ratio.low is None for ratio in report.ratios)


def test_answers_of_different_length_are_pointed_out():
    pair = (run(0.5), run(0.25))
    pair[1].records[0].completion_tokens = 40
    report = measure_comparison(settings(), comparison(pair))
    assert any("answers differ in length (4 and 40 tokens)" in text for text in report.warnings)


def test_interval_is_seeded_ordered_and_holds_the_median():
    values = [1.0, 1.1, 1.2, 1.3, 1.5, 1.6, 1.7, 1.9, 2.0]
    low, high = median_interval(values, 0.95, "s")
    assert (low, high) == median_interval(values, 0.95, "s")
    assert min(values) <= low < median(values) < high <= max(values)
    narrow_low, narrow_high = median_interval(values, 0.5, "s")
    assert low <= narrow_low <= median(values) <= narrow_high <= high


def test_interval_of_equal_values_has_no_width():
    assert median_interval([1.25] * 9, 0.95, "s") == (1.25, 1.25)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_no_interval_from_less_than_two_values(values: list[float]):
    assert median_interval(values, 0.95, "s") is None


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """300 samples of 25 standard normals: a 90 % interval of the median, whose true value is 0,
    should cover it 270 times. The percentile bootstrap is known to be somewhat off at this size;
    0.83 to 0.96 allows for that and for 4 standard errors of the count. Seeds are fixed."""
    chance, covered = random.Random(0), 0
    for number in range(300):
        sample = [chance.gauss(0, 1) for _ in range(25)]
        low, high = median_interval(sample, 0.9, str(number), resamples=400)
        covered += low <= 0 <= high
    assert 0.83 * 300 <= covered <= 0.96 * 300


def test_pairs_in_alternating_order_with_the_same_prompts(bench, mock):
    a, b = mock(ttft=0, itl=0), mock(ttft=0, itl=0)
    ran = bench("compare", a.url, b.url, *QUICK, "--rounds", 3, "--warmup", 1)
    assert ran.status == 0
    assert [row["side"] for row in ran.requests] == ["A", "B", "B", "A", "A", "B"]
    sent = [row["sent_ms"] for row in ran.requests]
    assert sent == sorted(sent)
    prompts = [[seen.body["messages"] for seen in server.seen] for server in (a, b)]
    assert prompts[0] == prompts[1]
    assert len(prompts[0]) == 4
    assert ran.document["rounds_counted"] == 3
    assert {ratio["metric"] for ratio in ran.document["ratios"]} >= {"ttft", "tpot", "tokens"}


def test_a_turn_begins_with_short_requests_that_are_not_measured(bench, mock):
    a, b = mock(ttft=0, itl=0), mock(ttft=0, itl=0)
    words = ("--rounds", 2, "--block", 2, "--warmup", 0, "--wake", 1)
    ran = bench("compare", a.url, b.url, *QUICK, *words)
    assert ran.status == 0
    assert len(ran.requests) == 8
    for server in (a, b):
        assert [seen.body["max_tokens"] for seen in server.seen] == [2, 8, 8, 2, 8, 8]


def test_a_slower_server_is_told_from_a_faster_one(bench, mock):
    """A's gaps are 20 ms or more by its own clock, B's 2 ms or more: a ratio of at most 10. Above
    2 leaves room for gaps of B that are 8 ms late on a busy machine, in the median."""
    a, b = mock(ttft=0, itl=0.02), mock(ttft=0, itl=0.002)
    words = ("compare", a.url, b.url, *QUICK, "--rounds", 4, "--warmup", 0)
    ran = bench(*words, "--fail-below", 2)
    ratios = {ratio["metric"]: ratio for ratio in ran.document["ratios"]}
    assert ran.status == 0
    assert ratios["tpot"]["median"] > 2
    assert bench("compare", b.url, a.url, *words[3:], "--fail-below", 1).status == 1


def test_ratios_follow_from_the_requests_file(bench, mock):
    """Rounding: times are stored as decimal milliseconds."""
    a, b = mock(ttft=0.01, itl=0), mock(ttft=0, itl=0)
    words = ("--rounds", 4, "--concurrency", 2, "--block", 3, "--warmup", 0)
    ran = bench("compare", a.url, b.url, *QUICK, *words)
    rows = ran.requests
    assert len(rows) == 4 * 2 * 3
    expected = []
    for number in range(4):
        sides = {
            side: median(r["ttft_ms"] for r in rows if (r["round"], r["side"]) == (number, side))
            for side in "AB"
        }
        expected.append(sides["A"] / sides["B"])
    (ttft,) = (ratio for ratio in ran.document["ratios"] if ratio["metric"] == "ttft")
    assert ttft["rounds"] == pytest.approx(expected, rel=1e-9)
    assert ttft["median"] == pytest.approx(median(expected), rel=1e-9)


def test_failures_of_one_side_are_shown_and_fail_a_gate(bench, mock):
    a, b = mock(ttft=0, itl=0), mock(ttft=0, itl=0, refuse_every=2)
    words = ("compare", a.url, b.url, *QUICK, "--rounds", 4, "--warmup", 0)
    ran = bench(*words)
    assert (ran.status, ran.document["rounds_counted"]) == (0, 2)
    assert "4 sent, 2 completed, 2 failed" in ran.out
    ran = bench(*words, "--fail-below", "requests:0.001")
    assert ran.status == 1
    assert "B failed 2 requests and A 0" in ran.out


def test_one_side_all_failed(bench, mock):
    a, b = mock(ttft=0, itl=0), mock(refuse_every=1)
    ran = bench("compare", a.url, b.url, *QUICK, "--rounds", 2)
    assert ran.status == 1
    assert ran.document["sides"]["B"]["ttft_ms"] is None
    assert all(ratio["median"] is None for ratio in ran.document["ratios"])


def test_sides_of_one_server_with_their_own_river_and_model(bench, mock):
    server = mock(ttft=0, itl=0)
    words = ("--river-a", '{"enabled": false}', "--river-b", '{"threshold": 0.8}', "--model-b", "m")
    ran = bench("compare", server.url, server.url, *QUICK, *words, "--rounds", 2, "--warmup", 0)
    sent = [(seen.body["model"], seen.body["river"]) for seen in server.seen]
    a, b = ("mock-model", {"enabled": False}), ("m", {"threshold": 0.8})
    assert sent == [a, b, b, a]
    assert "A and B are one server" in ran.out
    assert ran.document["endpoints"]["B"]["river"] == {"threshold": 0.8}


def test_a_key_of_its_own_for_b(bench, mock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEY_A", "aaa")
    monkeypatch.setenv("KEY_B", "bbb")
    a, b = mock(ttft=0, itl=0, key="aaa"), mock(ttft=0, itl=0, key="bbb")
    words = ("--rounds", 1, "--api-key-env", "KEY_A", "--api-key-env-b", "KEY_B")
    assert bench("compare", a.url, b.url, *QUICK, *words).status == 0


def test_files_of_a_comparison(bench, mock, tmp_path: Path):
    pytest.importorskip("matplotlib")
    table, page = tmp_path / "ratios.csv", tmp_path / "report.html"
    a, b = mock(ttft=0, itl=0), mock(ttft=0, itl=0)
    words = ("--rounds", 2, "--csv", table, "--html", page)
    ran = bench("compare", a.url, b.url, *QUICK, *words)
    rows = list(csv.DictReader(table.open()))
    assert [row["metric"] for row in rows] == ["ttft", "itl", "tpot", "e2e", "requests", "tokens"]
    assert float(rows[2]["median"]) == ran.document["ratios"][2]["median"]
    html = page.read_text()
    assert html.count("<svg") == 1
    assert "percentile bootstrap" in html
    assert "2 rounds make a rough interval" in html
