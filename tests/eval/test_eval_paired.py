"""Two settings on the same problems, at once or from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.evaluate.asking import order
from server.evaluate.figures.statistics import mcnemar_exact, paired_interval
from tests.evaluate.conftest import asked, right, write_rows, wrong_for
from tests.evaluate.mock import Reply

OFF, ON = '{"enabled": false}', '{"threshold": 0.9}'


def by_river(off: tuple[int, ...], on: tuple[int, ...]):
    """A server that fails at these problems with the river off, and at those with it on."""

    def respond(body: dict[str, Any]) -> Reply:
        wrong = on if body["river"] == json.loads(ON) else off
        reply = wrong_for(*wrong)(body)
        reply.river = {
            "num_layers": 30,
            "tokens": 2,
            "exit_layers": {"30" if wrong is off else "3": 2},
        }
        return reply

    return respond


def test_order_is_by_turns():
    assert order(3, ("A", "B")) == [(0, "A"), (0, "B"), (1, "B"), (1, "A"), (2, "A"), (2, "B")]
    assert order(2, ("A",)) == [(0, "A"), (1, "A")]


@pytest.fixture
def paired(evaluate, mock, sums: Path):
    def run(*words: object):
        server = mock(by_river(off=(9,), on=(2, 4, 9)))
        common = ("--data", sums, "--shots", 0, "--river", OFF, "--river-b", ON)
        return evaluate("gsm8k", server.url, *common, *words), server

    return run


def test_figures(paired):
    ran, server = paired()
    assert ran.status == 0, ran.err
    assert [(asked(seen.body), seen.body["river"] == json.loads(OFF)) for seen in server.seen][
        :4
    ] == [(1, True), (1, False), (2, False), (2, True)]
    low, high = paired_interval(2, 0, 10, 0.95)
    assert ran.document["paired"] == {
        "pairs": 10,
        "both_right": 7,
        "both_wrong": 1,
        "only_a": ["2", "4"],
        "only_b": [],
        "difference": -0.2,
        "low": low,
        "high": high,
        "p_value": mcnemar_exact(2, 0),
        "identical": 8,
        "compared_by": "tokens",
        "verdicts": [],
    }
    assert ran.figures("A")["accuracy"]["value"] == 0.9
    assert ran.figures("B")["accuracy"]["value"] == 0.7
    assert ran.figures("B")["river"]["mean_exit_layer"] == 3
    assert "right on A alone: 2 (2, 4)" in ran.out
    assert "B − A: -20.00 points on 10 problems" in ran.out
    assert "exact McNemar p = 0.5" in ran.out
    assert [side["river"] for side in ran.document["sides"].values()] == [
        json.loads(OFF),
        json.loads(ON),
    ]


@pytest.mark.parametrize(("points", "status"), [(20, 0), (19.99, 1), (0, 1), (100, 0)])
def test_gate(paired, points: float, status: int):
    ran, _ = paired("--max-loss", points)
    assert ran.status == status
    shown = f"B loses 20.00 points, more than --max-loss {points:g}"
    assert (shown in ran.out) is bool(status)
    assert ran.document["failures"] == ([shown] if status else [])


def test_a_gain_passes_every_gate(evaluate, mock, sums: Path):
    server = mock(by_river(off=(2, 4), on=()))
    words = ("--data", sums, "--river", OFF, "--river-b", ON, "--shots", 0, "--max-loss", 0)
    ran = evaluate("gsm8k", server.url, *words)
    assert ran.status == 0
    assert ran.document["paired"]["only_b"] == ["2", "4"]


def test_two_servers(evaluate, mock, sums: Path):
    """Without ``--river-b`` B is asked without a river field; the key is A's unless B has one."""
    a, b = mock(right), mock(wrong_for(8), key="sesame")
    key = sums.with_name("key")
    key.write_text("sesame")
    words = ("--url-b", b.url, "--river", OFF, "--model", "m", "--model-b", "n")
    ran = evaluate("gsm8k", a.url, "--data", sums, *words, "--api-key-file-b", key)
    assert ran.status == 0, ran.err + ran.out
    assert (len(a.seen), len(b.seen)) == (5, 5)
    assert a.seen[0].body == b.seen[0].body | {"model": "m", "river": json.loads(OFF)}
    assert "Authorization" not in a.seen[0].headers
    assert ran.document["paired"]["only_a"] == ["8"]
    assert [side["model"] for side in ran.document["sides"].values()] == ["m", "n"]


def test_outputs_are_compared_as_text_where_tokens_are_missing(evaluate, mock, sums: Path):
    def respond(body: dict[str, Any]) -> Reply:
        reply = right(body)
        reply.token_ids = None
        if asked(body) == 7 and "threshold" in body["river"]:
            reply.text = f"Other words.{reply.text}"
        return reply

    ran = evaluate("gsm8k", mock(respond).url, "--data", sums, "--river", OFF, "--river-b", ON)
    paired = ran.document["paired"]
    assert (paired["identical"], paired["compared_by"]) == (4, "text")
    assert "outputs compared as text" in ran.out


def test_equal_programs_are_run_once(evaluate, mock, functions: Path, tmp_path: Path):
    """Each run would leave a line; a program that passes by chance is no flip either."""
    marks = tmp_path / "marks"
    program = f"    open({str(marks)!r}, 'a').write('.')\n    return x + 1\n"
    server = mock(lambda body: Reply(program))
    words = ("--data", functions, "--limit", 2, "--river", OFF, "--river-b", ON)
    ran = evaluate("humaneval", server.url, *words)
    assert ran.status == 0, ran.err
    assert marks.read_text() == ".."
    assert ran.document["paired"]["both_right"] == 1


@pytest.fixture
def saved(evaluate, mock, sums: Path):
    def run(name: str, *wrong: int, words: tuple[object, ...] = (), data: Path = sums) -> Path:
        url = mock(wrong_for(*wrong)).url
        ran = evaluate("gsm8k", url, "--data", data, *words, json_name=name)
        assert ran.status == 0, ran.err
        return ran.json_path

    return run


def test_saved_runs_compare_as_at_once(evaluate, saved):
    a, b = saved("a.json", 9), saved("b.json", 8, 10)
    ran = evaluate("compare", a, b, "--confidence", 0.9)
    assert ran.status == 0, ran.err
    paired = ran.document["paired"]
    assert (paired["only_a"], paired["only_b"]) == (["8", "10"], ["9"])
    assert (paired["low"], paired["high"]) == paired_interval(2, 1, 5, 0.9)
    assert paired["identical"] == 2
    assert ran.document["kind"] == "eval-compare"
    assert ran.figures("A") == json.loads(a.read_text())["figures"]["A"] | {
        "accuracy": ran.figures("A")["accuracy"],
        "other": ran.figures("A")["other"],
    }
    assert evaluate("compare", a, b, "--max-loss", 10).status == 1


def test_settings_that_differ_are_named(evaluate, saved):
    a = saved("a.json")
    b = saved("b.json", words=("--max-tokens", 64, "--concurrency", 2))
    ran = evaluate("compare", a, b)
    assert ran.status == 0
    assert "max_tokens was 512 in A and 64 in B" in ran.out
    assert "concurrency" not in ran.out


def test_runs_of_other_problems_are_refused(evaluate, saved, sums: Path, tmp_path: Path):
    rows = [json.loads(line) for line in sums.read_text().splitlines()]
    other = write_rows(tmp_path / "other.jsonl", rows[:-1])
    a = saved("a.json")
    for name, b in {
        "data.sha256": saved("b.json", data=other),
        "number of answers": saved("c.json", words=("--limit", 2)),
        "their prompts differ (problem 5 in B)": None,
        "judging": saved("d.json", words=("--verdict", "strict")),
    }.items():
        if b is None:
            b, name = saved("e.json", words=("--shots", 4, "--limit", 5)), "prompts differ"
        ran = evaluate("compare", a, b)
        assert ran.status == 2
        assert "cannot be compared" in ran.err and name in ran.err
        assert ran.err.count("\n") == 1


def test_the_same_problems_after_other_examples_are_other_prompts(evaluate, saved, sums: Path):
    a = saved("a.json", words=("--shots", 1))
    document = json.loads(a.read_text())
    document["answers"][2]["prompt"] = "Question: another"
    b = a.with_name("b.json")
    b.write_text(json.dumps(document))
    ran = evaluate("compare", a, b)
    assert ran.status == 2
    assert "their prompts differ (problem 4)" in ran.err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "run"}, "'kind' = 'run'"),
        ({"format": 99}, "'format' = 99"),
        ({"interrupted": True}, "the evaluation was interrupted"),
        ({"answers": []}, "not judged"),
        ({"answers": [{"id": "1"}]}, "answers.0.side: Field required"),
        ({"task": 7}, "task: Input should be a valid string"),
    ],
)
def test_files_that_cannot_be_used(evaluate, saved, change: dict[str, Any], reason: str):
    a = saved("a.json")
    b = a.with_name("b.json")
    b.write_text(json.dumps(json.loads(a.read_text()) | change))
    ran = evaluate("compare", a, b)
    assert ran.status == 2
    assert str(b) in ran.err and reason in ran.err
    assert ran.err.count("\n") == 1


def test_other_files(evaluate, saved, paired, tmp_path: Path):
    a = saved("a.json")
    for text in ("", "{", "[]", '{"kind": "eval"}', "\ud800"):
        path = tmp_path / "bad.json"
        path.write_text(text, errors="surrogatepass")
        ran = evaluate("compare", a, path)
        assert ran.status == 2
        assert "not an evaluation written by --json" in ran.err
    assert "No such file" in evaluate("compare", a, tmp_path / "none.json").err
    two, _ = paired()
    assert "it has 2 sides" in evaluate("compare", a, two.json_path, json_name="c.json").err
    document = json.loads(a.read_text())
    document["answers"][0] |= {"outcome": "failed"}
    path.write_text(json.dumps(document))
    assert "1 of its 5 requests failed" in evaluate("compare", a, path).err
