"""Load tests against a server of known timing and known failures.

Client and server share one clock, so most checks are exact: a client cannot see a chunk before
the server wrote it. Where a difference is bounded from above, the bound is ``SLACK``.
"""

from __future__ import annotations

import csv
import re
import statistics
import time
from itertools import pairwise
from pathlib import Path

import pytest

from server.bench import request

SLACK = 0.25
"""Seconds that a loopback chunk may take from the server's write to the client's clock. Both are
threads of one interpreter on a machine that may be busy with other work: usual is under a
millisecond, and far more than a thread switch (5 ms) means a fault in what is measured."""

QUICK = ("--warmup", "0", "--prompt-words", "3", "--output-tokens", "8")


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_times_agree_with_the_servers_own(bench, mock, api: str):
    server = mock(ttft=0.03, itl=0.01)
    ran = bench(server.url, *QUICK, "--api", api, "--num-requests", 4)
    assert ran.status == 0
    assert ran.level["counts"]["completed"] == 4
    for row, seen in zip(ran.requests, server.seen, strict=True):
        first, last = seen.written[0] - seen.arrived, seen.written[-1] - seen.arrived
        assert first <= row["ttft_ms"] / 1e3 <= first + SLACK
        assert last <= row["e2e_ms"] / 1e3 <= last + SLACK
        assert abs(row["tpot_ms"] / 1e3 - (last - first) / 7) <= SLACK / 7
        assert row["itl_basis"] == "one token per chunk"


def test_level_figures_follow_from_the_requests_file(bench, mock):
    """Every published figure recomputed from the recorded arrivals. The tolerance is rounding:
    times are stored as decimal milliseconds."""
    ran = bench(mock().url, *QUICK, "--num-requests", 6, "--concurrency", 2)
    rows, level = ran.requests, ran.level
    times = [[chunk["ms"] for chunk in row["chunks"]] for row in rows]
    gaps = [b - a for each in times for a, b in pairwise(each)]
    expected = {
        "ttft_ms": [each[0] for each in times],
        "itl_ms": gaps,
        "chunk_gap_ms": gaps,
        "e2e_ms": [each[-1] for each in times],
        "tpot_ms": [(each[-1] - each[0]) / 7 for each in times],
    }
    for name, samples in expected.items():
        quantiles = statistics.quantiles(samples, n=100, method="inclusive")
        assert level[name]["count"] == len(samples)
        assert level[name]["mean"] == pytest.approx(statistics.fmean(samples), rel=1e-9)
        for percent in (50, 90, 95, 99):
            assert level[name][f"p{percent}"] == pytest.approx(quantiles[percent - 1], rel=1e-9)
    duration = (max(r["ended_ms"] for r in rows) - min(r["sent_ms"] for r in rows)) / 1e3
    assert level["duration_s"] == pytest.approx(duration, rel=1e-9)
    rate = level["throughput"]
    assert rate["requests_per_s"] == pytest.approx(6 / duration, rel=1e-9)
    assert rate["output_tokens_per_s"] == pytest.approx(6 * 8 / duration, rel=1e-9)
    assert rate["input_tokens_per_s"] == pytest.approx(6 * 7 / duration, rel=1e-9)


def test_several_tokens_per_chunk(bench, mock):
    ran = bench(mock(tokens_per_chunk=4).url, *QUICK, "--num-requests", 2)
    assert ran.level["tokens"]["per_chunk"] == 4.0
    for row in ran.requests:
        first, last = (chunk["ms"] for chunk in row["chunks"])
        assert row["tpot_ms"] == pytest.approx((last - first) / 7, rel=1e-9)
        assert row["itl_basis"] == "mean tokens per chunk of the request"
    assert ran.level["itl_ms"]["mean"] == pytest.approx(
        ran.level["chunk_gap_ms"]["mean"] / 4, rel=1e-9
    )
    assert "--chunk-usage" in ran.out


def test_usage_in_every_chunk_is_asked_for_and_used(bench, mock):
    server = mock(tokens_per_chunk=3, chunk_usage=True)
    ran = bench(server.url, *QUICK, "--chunk-usage", "--num-requests", 1)
    assert server.seen[0].body["stream_options"]["continuous_usage_stats"] is True
    (row,) = ran.requests
    assert [chunk["tokens"] for chunk in row["chunks"]] == [3, 6, 8]
    assert row["itl_basis"] == "usage in every chunk"
    assert ran.level["itl_ms"]["count"] == 5


@pytest.mark.parametrize(
    "shape",
    [
        {"empty_end": True},
        {"separate_finish": True},
        {"keep_alive": True},
        {"newline": "\r\n"},
        {"finish_reason": "stop"},
    ],
)
def test_shapes_of_streams_that_are_whole(bench, mock, shape: dict):
    ran = bench(mock(**shape).url, *QUICK, "--num-requests", 2)
    assert ran.status == 0
    assert ran.level["counts"]["completed"] == 2
    assert ran.level["itl_ms"]["count"] == 2 * 7
    assert ran.level["itl_basis"] == {"one token per chunk": 2}


def test_known_failures_are_counted_apart_by_kind(bench, mock):
    """40 requests, one at a time: 4 refused; 8 at multiples of 5 cut, but 4 of them refused;
    13 at multiples of 3 answered with an error, but not those refused or cut before."""
    server = mock(ttft=0, itl=0, refuse_every=10, cut_every=5, error_every=3)
    ran = bench(server.url, *QUICK, "--num-requests", 40, "--max-failures", 0.5)
    counts = ran.level["counts"]
    errors = ran.level["errors"]
    assert errors["HTTP 503"] == 4
    assert errors["connection lost in mid-stream"] == 4
    assert errors["error in the stream"] == 11
    assert counts == {
        "sent": 40,
        "completed": 21,
        "failed": 15,
        "incomplete": 4,
        "cancelled": 0,
        "interrupted": 0,
    }
    assert ran.level["error_examples"]["error in the stream"] == "engine died"
    assert ran.level["ttft_ms"]["count"] == 21
    assert ran.level["tokens"]["output"] == 21 * 8
    assert "21 completed, 15 failed, 4 incomplete" in ran.out
    assert "19 of 40 requests failed" in " ".join(ran.out.split())
    assert ran.status == 0


def test_too_many_failures_set_the_status(bench, mock):
    server = mock(ttft=0, itl=0, refuse_every=2)
    ran = bench(server.url, *QUICK, "--num-requests", 4, "--max-failures", 0.25)
    assert ran.status == 1


BROKEN = [
    ({"finish_reason": None}, "incomplete", "ended without finish_reason"),
    ({"done": False}, "incomplete", "ended without [DONE]"),
    ({"finish_reason": "abort"}, "failed", "finish_reason abort"),
    ({"content_type": "application/json"}, "failed", "not a stream"),
    ({"refuse_every": 1, "refuse_status": 400}, "failed", "HTTP 400"),
]


@pytest.mark.parametrize(("behaviour", "outcome", "error"), BROKEN)
def test_all_failed_is_null_and_a_status(bench, mock, behaviour: dict, outcome: str, error: str):
    ran = bench(mock(ttft=0, itl=0, **behaviour).url, *QUICK, "--num-requests", 3, "--slo", "e2e:9")
    assert ran.status == 1
    level = ran.level
    assert level["counts"][outcome] == 3
    assert level["errors"] == {error: 3}
    for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms", "throughput", "tokens", "goodput"):
        assert level[name] is None
    assert "none of 3 requests completed" in ran.out


def test_time_out(bench, mock):
    ran = bench(mock(hang=True).url, *QUICK, "--num-requests", 1, "--timeout", 0.2)
    assert ran.status == 1
    assert ran.level["errors"] == {"timeout": 1}


def test_a_body_that_goes_on_after_done_is_complete_and_not_waited_for(bench, mock):
    """The time-out strikes while the rest of the body is awaited, after the answer ended."""
    server = mock(ttft=0, itl=0, linger=5)
    ran = bench(server.url, *QUICK, "--num-requests", 1, "--timeout", 0.6)
    assert ran.level["counts"]["completed"] == 1
    assert ran.requests[0]["ended_ms"] < 600


def test_a_server_that_is_not_there(bench):
    ran = bench("http://127.0.0.1:9")
    assert ran.status == 1
    assert len(ran.err.splitlines()) == 1
    assert "cannot be reached" in ran.err
    ran = bench("http://127.0.0.1:9", "--model", "m", *QUICK, "--num-requests", 2)
    assert ran.status == 1
    assert ran.level["errors"] == {"no connection": 2}


def test_without_usage_no_token_figure_is_made_up(bench, mock):
    ran = bench(mock(usage=False).url, *QUICK, "--num-requests", 2)
    level = ran.level
    assert ran.status == 0
    assert (level["tpot_ms"], level["itl_ms"], level["tokens"]) == (None, None, None)
    assert level["throughput"]["output_tokens_per_s"] is None
    assert level["chunk_gap_ms"]["count"] == 2 * 7
    assert "2 of 2 answers came without usage" in ran.out


def test_cancellation_is_seen_by_the_server_and_counted_apart(bench, mock):
    server = mock(ttft=0, itl=0.02)
    words = ("--cancel-rate", "1", "--cancel-after", "3", "--num-requests", 3)
    ran = bench(server.url, *QUICK, "--output-tokens", 50, *words)
    assert ran.status == 0
    assert ran.level["counts"]["cancelled"] == 3
    assert ran.level["throughput"] is None
    assert [len(row["chunks"]) for row in ran.requests] == [3, 3, 3]
    assert all(len(seen.written) < 50 for seen in server.seen)


def test_some_cancelled(bench, mock):
    ran = bench(mock(ttft=0, itl=0).url, *QUICK, "--num-requests", 20, "--cancel-rate", "0.5")
    counts = ran.level["counts"]
    assert 0 < counts["cancelled"] < 20
    assert counts["completed"] == 20 - counts["cancelled"]
    assert ran.level["e2e_ms"]["count"] == counts["completed"]


def test_closed_loop_keeps_its_concurrency(bench, mock):
    ran = bench(mock(ttft=0.03).url, *QUICK, "--num-requests", 9, "--concurrency", 3)
    assert ran.level["max_in_flight"] == 3
    rows = ran.requests
    for row in rows:
        inside = [r for r in rows if r["sent_ms"] <= row["sent_ms"] < r["ended_ms"]]
        assert len(inside) <= 3


def test_open_loop_does_not_wait_for_answers(bench, mock):
    """Answers take at least 0.3 s, and 8 requests at 100/s are due within 0.07 s: a loop that
    waited would send the second one after the first was answered."""
    server = mock(ttft=0.3)
    words = ("--rate", 100, "--arrivals", "constant", "--num-requests", 8)
    ran = bench(server.url, *QUICK, *words)
    rows = ran.requests
    assert [row["scheduled_ms"] for row in rows] == pytest.approx(
        [rows[0]["scheduled_ms"] + 10 * place for place in range(8)], rel=1e-9
    )
    assert all(row["sent_ms"] >= row["scheduled_ms"] for row in rows)
    assert rows[1]["sent_ms"] < rows[0]["ended_ms"]
    assert ran.level["send_delay_ms"]["count"] == 8


def test_poisson_schedule_is_seeded(bench, mock):
    server = mock(ttft=0, itl=0)
    words = (server.url, *QUICK, "--rate", 200, "--num-requests", 10, "--seed", 7)

    def gaps() -> list[float]:
        times = [row["scheduled_ms"] for row in bench(*words).requests]
        return [b - a for a, b in pairwise(times)]

    assert gaps() == pytest.approx(gaps(), abs=1e-6)


def test_duration_stops_sending_and_waits_for_the_rest(bench, mock):
    ran = bench(mock(ttft=0.05, itl=0).url, *QUICK, "--duration", 0.3, "--concurrency", 2)
    rows = ran.requests
    assert ran.level["counts"]["completed"] == len(rows) >= 2
    assert all(row["sent_ms"] <= 300 for row in rows)


def test_duration_and_count_stop_at_the_first(bench, mock):
    ran = bench(mock(ttft=0, itl=0).url, *QUICK, "--duration", 60, "--num-requests", 3)
    assert ran.level["counts"]["sent"] == 3


@pytest.mark.parametrize(
    ("option", "field", "name"), [("--concurrency", "concurrency", "2"), ("--rate", "rate", "50")]
)
def test_sweep(bench, mock, tmp_path: Path, option: str, field: str, name: str):
    table = tmp_path / "levels.csv"
    server = mock(ttft=0, itl=0)
    ran = bench(server.url, *QUICK, option, f"{name},100", "--num-requests", 4, "--csv", table)
    levels = ran.document["levels"]
    assert [level["load"][field] for level in levels] == [int(name), 100]
    assert [level["counts"]["completed"] for level in levels] == [4, 4]
    assert len(ran.requests) == 8
    rows = list(csv.DictReader(table.open()))
    assert [float(row[f"load.{field}"]) for row in rows] == [float(name), 100.0]
    assert float(rows[1]["ttft_ms.p99"]) == levels[1]["ttft_ms"]["p99"]
    prompts = [seen.body["messages"][0]["content"] for seen in server.seen]
    assert len(set(prompts)) == 8


def test_a_sweep_fails_if_one_level_has_nothing(bench, mock):
    server = mock(ttft=0, itl=0, refuse_after=4)
    ran = bench(server.url, *QUICK, "--concurrency", "1,2", "--num-requests", 4)
    assert [level["counts"]["completed"] for level in ran.document["levels"]] == [4, 0]
    assert ran.status == 1


def test_warm_up_is_sent_and_not_measured(bench, mock):
    server = mock(ttft=0, itl=0)
    words = ("--warmup", 3, "--num-requests", 2, "--prompt-words", 3, "--output-tokens", 4)
    ran = bench(server.url, *words)
    assert len(server.seen) == 5
    assert ran.level["counts"]["sent"] == 2
    assert ran.document["warmup"] == {"sent": 3, "failed": 0}


def test_river_field_and_exit_depths(bench, mock):
    depths = {"num_layers": 30, "tokens": 8, "exit_layers": {"3": 6, "30": 2}}
    server = mock(ttft=0, itl=0, river=depths)
    ran = bench(server.url, *QUICK, "--num-requests", 3, "--river", '{"threshold": 0.9}')
    assert all(seen.body["river"] == {"threshold": 0.9} for seen in server.seen)
    river = ran.level["river"]
    assert river["answers"] == 3
    assert river["exit_layers"] == {"3": 18, "30": 6}
    assert river["mean_exit_layer"] == (3 * 6 + 30 * 2) / 8
    assert river["early_share"] == 0.75
    assert "mean exit layer 9.75 of 30" in ran.out


def test_jsonl_prompts_reach_the_server(bench, mock, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "one", "max_tokens": 3}\n{"prompt": "two"}\n')
    server = mock(ttft=0, itl=0)
    words = ("--warmup", 0, "--num-requests", 3, "--output-tokens", 5)
    ran = bench(server.url, "--dataset", rows, *words)
    bodies = [seen.body for seen in server.seen]
    assert [body["messages"][0]["content"] for body in bodies] == ["one", "two", "one"]
    assert [body["max_tokens"] for body in bodies] == [3, 5, 3]
    assert "more than once" in ran.out
    assert ran.document["requests"]["dataset"]["rows"] == 2


def test_goodput(bench, mock):
    words = (*QUICK, "--num-requests", 2, "--slo", "ttft:60000", "--slo", "e2e:0.001")
    good = bench(mock(ttft=0, itl=0).url, *words).level["goodput"]
    assert good["slos_ms"] == {"ttft": 60000, "e2e": 0.001}
    assert (good["good"], good["share"]) == (0, 0.0)


def test_key_and_model_discovery(bench, mock, monkeypatch: pytest.MonkeyPatch):
    server = mock(ttft=0, itl=0, key="secret-key", models=("only",))
    ran = bench(server.url, *QUICK, "--num-requests", 1)
    assert (ran.status, "HTTP 401: Unauthorized" in ran.err) == (1, True)
    monkeypatch.setenv("MY_KEY", "secret-key")
    ran = bench(server.url, *QUICK, "--num-requests", 1, "--api-key-env", "MY_KEY")
    assert ran.status == 0
    assert server.seen[0].body["model"] == "only"
    assert "secret-key" not in ran.json_path.read_text() + ran.out


@pytest.mark.parametrize("models", [(), ("a", "b")])
def test_a_model_that_has_to_be_named(bench, mock, models: tuple[str, ...]):
    server = mock(ttft=0, itl=0, models=models)
    ran = bench(server.url, *QUICK)
    assert ran.status == 1
    assert f"lists {len(models)} models" in ran.err
    assert bench(server.url, *QUICK, "--num-requests", 1, "--model", "b").status == 0


def test_html_report_stands_alone(bench, mock, tmp_path: Path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    depths = {"num_layers": 30, "tokens": 8, "exit_layers": {"3": 8}}
    server = mock(ttft=0, itl=0, refuse_every=4, river=depths)
    bench(server.url, *QUICK, "--concurrency", "1,2", "--num-requests", 6, "--html", page)
    html = page.read_text()
    assert html.count("<svg") == 4
    for text in ("1 failed", "HTTP 503", "no room", "(E2E − TTFT)", "mock-model"):
        assert text in html
    assert not re.search(r'(?:src|href)="(?!#)', html.replace("xlink:href", "href"))
    assert "<script" not in html
    assert "@import" not in html


def test_html_report_of_a_run_without_any_answer(bench, mock, tmp_path: Path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    ran = bench(mock(refuse_every=1).url, *QUICK, "--num-requests", 2, "--html", page)
    assert ran.status == 1
    assert "none of 2 requests completed" in page.read_text()


def test_more_requests_in_flight_than_http_clients_allow_by_default(bench, mock):
    """120 at once: a pool of 100 connections would leave 20 of them unsent until others end.
    Answers wait 1.5 s, time enough for a busy machine to open 120 connections."""
    server = mock(ttft=1.5, itl=0)
    ran = bench(server.url, *QUICK, "--num-requests", 120, "--concurrency", 120)
    assert ran.level["counts"]["completed"] == 120
    arrived = sorted(seen.arrived for seen in server.seen)
    first_answer = min(seen.written[0] for seen in server.seen)
    assert sum(time < first_answer for time in arrived) == 120


def test_a_client_that_is_too_slow_says_so(bench, mock, monkeypatch: pytest.MonkeyPatch):
    """Work of 60 ms per chunk on the event loop is above the limit of 5 ms, on any machine."""
    parse = request.parse_chunk

    def slow(data: str):
        time.sleep(0.06)
        return parse(data)

    monkeypatch.setattr(request, "parse_chunk", slow)
    ran = bench(mock(ttft=0, itl=0).url, *QUICK, "--num-requests", 1)
    assert "the client is a bottleneck" in ran.out
    assert ran.level["client"]["loop_lag_p99_ms"] >= 50
