"""What is wrong with an argument or a file is said in one line; exit status 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.conftest import write_rows


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--limit 0", "a whole number of at least 1"),
        ("--shots -1", "a whole number of at least 0"),
        ("--shots 11", "--shots 11: --data"),
        ("--shots 10", "no row of --data"),
        ("--api chat --shots 2", "--shots: not with --api chat"),
        ("--api chat --shots-file x", "--shots-file: not with --api chat"),
        ("--shots 0 --shots-file x", "--shots-file: only with --shots of at least 1"),
        ("--shots-file missing.jsonl", "No such file"),
        ("--api responses", "invalid choice: 'responses'"),
        ("--temperature -1", "a number of at least 0"),
        ("--temperature nan", "a number of at least 0"),
        ("--top-p 0.9", "--top-p: only with --temperature above 0"),
        ("--seed 1", "--seed: only with --temperature above 0"),
        ("--temperature 1 --top-p 0", "--top-p 0: expected a number above 0"),
        ("--temperature 1 --top-p 1.1", "a number from 0 to 1"),
        ("--river 0.9", "a JSON object"),
        ("--river-b []", "a JSON object"),
        ('--extra-body {"seed":1,"stop":"x"}', "--extra-body: seed, stop"),
        ("--max-loss 1", "--max-loss: only with --river-b, --url-b or --model-b"),
        ("--api-key-env-b X", "only with --river-b"),
        ("--river-b {} --api-key-env-b NOT_SET_AT_ALL", "'NOT_SET_AT_ALL'"),
        ("--api-key-env NOT_SET_AT_ALL", "'NOT_SET_AT_ALL'"),
        ("--url-b ftp://x", "expected http://HOST:PORT"),
        ("--confidence 1", "a number between 0 and 1"),
        ("--concurrency 0", "a whole number of at least 1"),
        ("--timeout 0", "a number above 0"),
        ("--verdict loose", "invalid choice: 'loose'"),
        ("--lim 3", "unrecognized arguments: --lim 3"),
    ],
)
def test_gsm8k(evaluate, sums: Path, words: str, reason: str):
    ran = evaluate("gsm8k", "http://127.0.0.1:9", "--data", sums, *words.split())
    assert ran.status == 2
    assert reason in ran.err
    assert ran.err.count("\n") == 1
    assert not ran.json_path.exists()


@pytest.mark.parametrize(
    "words", ["--cpu-seconds 0", "--wall-seconds 0", "--memory-mib 63", "--workers 0"]
)
def test_humaneval(evaluate, functions: Path, words: str):
    ran = evaluate("humaneval", "--data", functions, *words.split())
    assert ran.status == 2
    assert words.split()[0] in ran.err


def test_what_must_be_given(evaluate):
    assert "--data" in evaluate("gsm8k").err
    assert "COMMAND" in evaluate().err
    assert "invalid choice: 'mmlu'" in evaluate("mmlu").err


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "the file has no rows"),
        (["x"], "line 1: expected a JSON object"),
        ([{"question": "?", "answer": "#### 1"}, {"question": "?"}], "line 2: 'answer' = None"),
        ([{"question": 5, "answer": "#### 1"}], "line 1: 'question' = 5: expected a text"),
        ([{"question": " ", "answer": "#### 1"}], "line 1: 'question' = ' '"),
        ([{"question": "?", "answer": "it is 1"}], "line 1: 'answer' = …'it is 1'"),
    ],
)
def test_gsm8k_rows(evaluate, tmp_path: Path, rows: list[Any], reason: str):
    data = write_rows(tmp_path / "rows.jsonl", rows)
    ran = evaluate("gsm8k", "http://127.0.0.1:9", "--data", data, "--shots", 0)
    assert ran.status == 2
    assert reason in ran.err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task_id": None}, "'task_id' = None"),
        ({"test": ""}, "'test' = ''"),
        ({"entry_point": "f()"}, "'entry_point' = 'f()': expected a name"),
        ({"prompt": 1}, "'prompt' = 1"),
    ],
)
def test_humaneval_rows(evaluate, functions: Path, change: dict[str, Any], reason: str):
    rows = [json.loads(line) for line in functions.read_text().splitlines()]
    rows[1] |= change
    ran = evaluate("humaneval", "--data", write_rows(functions, rows))
    assert ran.status == 2
    assert f"line 2: {reason}" in ran.err


def test_humaneval_examples_need_a_solution(evaluate, functions: Path):
    rows = [json.loads(line) for line in functions.read_text().splitlines()]
    del rows[0]["canonical_solution"]
    ran = evaluate("humaneval", "--data", write_rows(functions, rows), "--shots", 1)
    assert "line 1: 'canonical_solution' = None" in ran.err


def test_names_stand_once(evaluate, functions: Path):
    rows = [json.loads(line) for line in functions.read_text().splitlines()]
    ran = evaluate("humaneval", "--data", write_rows(functions, rows + rows[:1]))
    assert ran.status == 2
    assert "'task_id' = 'add/0' stands in more than one row" in ran.err


def test_an_example_must_not_be_asked(evaluate, sums: Path):
    ran = evaluate("gsm8k", "--data", sums, "--shots", 2, "--shots-file", sums)
    assert ran.status == 2
    assert "--shots-file line 1: the same as line 1 of --data" in ran.err


@pytest.mark.parametrize("content", [b"\xff\xfe", b'{"question": NaN}\n', b'{"a": "\\ud800"}\n'])
def test_files_that_are_not_jsonl(evaluate, tmp_path: Path, content: bytes):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    ran = evaluate("gsm8k", "--data", path)
    assert ran.status == 2
    assert str(path) in ran.err


def test_empty_lines_count_as_lines(evaluate, mock, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"question": "?", "answer": "#### 1"}\n\n{"question": "!"}\n')
    ran = evaluate("gsm8k", "http://127.0.0.1:9", "--data", path, "--shots", 0)
    assert "line 4: 'answer' = None" in ran.err


def test_the_output_is_checked_before_anything_is_asked(evaluate, sums: Path):
    ran = evaluate("gsm8k", "http://127.0.0.1:9", "--data", sums, json_name="no/such/folder.json")
    assert ran.status == 2
    assert "expected a file in a folder that exists" in ran.err


def test_help(evaluate):
    for words in ((), ("gsm8k",), ("humaneval",), ("compare",)):
        ran = evaluate(*words, "--help")
        assert ran.status == 0
    assert "no security boundary" in " ".join(evaluate("humaneval", "--help").out.split())
