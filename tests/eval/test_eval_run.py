"""Evaluations of one setting: what is asked, what is judged, what is written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from server.evaluate.figures.statistics import wilson_interval
from server.evaluate.sandbox import isolation
from tests.evaluate.conftest import asked, right, write_rows, wrong_for
from tests.evaluate.mock import Reply

RIVER = {"enabled": True, "num_layers": 30, "tokens": 4, "exit_layers": {"2": 3, "30": 1}}


def test_gsm8k_with_examples(evaluate, mock, sums: Path):
    server = mock(wrong_for(7, 9), river={"active": True, "threshold": 0.9})
    ran = evaluate("gsm8k", server.url, "--data", sums, "--shots", 2)
    assert ran.status == 0, ran.err
    assert [asked(seen.body) for seen in server.seen] == list(range(3, 11))
    first = server.seen[0]
    assert first.path == "/v1/completions"
    assert first.body == {
        "model": "mock-model",
        "prompt": "Question: What is 1 + 1?\nAnswer: It is <<1+1=2>>.\n#### 2\n\n"
        "Question: What is 2 + 2?\nAnswer: It is <<2+2=4>>.\n#### 4\n\n"
        "Question: What is 3 + 3?\nAnswer:",
        "max_tokens": 512,
        "temperature": 0.0,
        "stream": False,
        "stop": ["Question:"],
        "return_token_ids": True,
    }
    figures = ran.figures()
    low, high = wilson_interval(6, 8, 0.95)
    share = {"correct": 6, "total": 8, "value": 0.75, "low": low, "high": high}
    assert figures["accuracy"] == share
    assert figures["other"] == {"strict": share}
    assert figures["outcomes"] == {"right": 6, "wrong": 2}
    assert f"75.0% ({low:.1%} … {high:.1%})" in ran.out
    assert [a["id"] for a in ran.answers if not a["verdict"]["correct"]] == ["7", "9"]


def test_the_document(evaluate, mock, sums: Path):
    page = {"active": True, "threshold": 0.9}
    server = mock(lambda body: Reply("#### 2", river=RIVER), river=page)
    ran = evaluate("gsm8k", server.url, "--data", sums, "--shots", 0, "--limit", 2)
    document = ran.document
    assert document["kind"] == "eval"
    assert document["task"] == "gsm8k"
    assert document["data"] == {
        "name": "sums.jsonl",
        "rows": 10,
        "sha256": hashlib.sha256(sums.read_bytes()).hexdigest(),
        "asked": 2,
    }
    assert document["sides"]["A"]["server"] == {"river": page, "version": {"version": "9.9"}}
    assert document["settings"]["temperature"] == 0
    assert document["paired"] is None
    answer = document["answers"][0]
    assert answer["prompt"] == server.seen[0].body["prompt"]
    assert answer["seconds"] > 0
    kept = {name: answer[name] for name in ("id", "expected", "text", "token_ids", "river")}
    assert kept == {
        "id": "1",
        "expected": "2",
        "text": "#### 2",
        "token_ids": [7, 8, 9],
        "river": RIVER,
    }
    assert (answer["prompt_tokens"], answer["completion_tokens"]) == (5, 3)
    assert answer["verdict"] == {
        "correct": True,
        "extracted": "2",
        "outcome": "right",
        "detail": "",
        "other": {"strict": {"correct": True, "extracted": "2"}},
    }
    river = document["figures"]["A"]["river"]
    assert (river["mean_exit_layer"], river["exit_layers"]) == (9.0, {"2": 6, "30": 2})
    assert "9.00 of 30" in ran.out


def test_every_answer_has_a_line_of_its_own(evaluate, mock, sums: Path):
    ran = evaluate("gsm8k", mock(right).url, "--data", sums)
    lines = ran.json_path.read_text().splitlines()
    assert sum('"verdict": {' in line and '"prompt": ' in line for line in lines) == 5


def test_a_server_without_river_or_version(evaluate, mock, sums: Path):
    ran = evaluate("gsm8k", mock(right).url, "--data", sums)
    assert ran.status == 0
    assert ran.document["sides"]["A"]["server"] == {"river": None, "version": None}
    assert ran.figures()["river"] is None
    assert "warning" not in ran.out


def test_chat_asks_without_examples(evaluate, mock, sums: Path):
    server = mock(right)
    ran = evaluate("gsm8k", server.url, "--data", sums, "--api", "chat", "--limit", 3)
    assert ran.status == 0, ran.err
    assert [seen.path for seen in server.seen] == ["/v1/chat/completions"] * 3
    (message,) = server.seen[0].body["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith("What is 1 + 1?\n\n")
    assert "#### NUMBER" in message["content"]
    assert "stop" not in server.seen[0].body
    assert ran.figures()["accuracy"]["value"] == 1


def test_examples_from_another_file(evaluate, mock, sums: Path, tmp_path: Path):
    other = write_rows(tmp_path / "other.jsonl", [{"question": "One?", "answer": "#### 1"}])
    server = mock(right)
    ran = evaluate(
        "gsm8k", server.url, "--data", sums, "--shots", 1, "--shots-file", other, "--limit", 2
    )
    assert ran.status == 0, ran.err
    assert [asked(seen.body) for seen in server.seen] == [1, 2]
    assert server.seen[0].body["prompt"].startswith("Question: One?\nAnswer: #### 1\n\nQuestion:")
    assert ran.document["settings"]["shots_file"]["name"] == "other.jsonl"


def test_strict_and_flexible_disagree(evaluate, mock, sums: Path):
    """Right only by the last number for 6, only by the marked one for 7, no number for 8."""
    texts = {6: "It is 12", 7: "#### 14\nNot 15!", 8: "No idea"}

    def respond(body: dict[str, Any]) -> Reply:
        return Reply(texts[asked(body)]) if asked(body) in texts else right(body)

    url = mock(respond).url
    flexible = evaluate("gsm8k", url, "--data", sums).document["figures"]["A"]
    strict = evaluate("gsm8k", url, "--data", sums, "--verdict", "strict").document["figures"]["A"]
    assert (flexible["accuracy"]["correct"], flexible["other"]["strict"]["correct"]) == (3, 3)
    assert (strict["accuracy"]["correct"], strict["other"]["flexible"]["correct"]) == (3, 3)
    assert (flexible["invalid"], strict["invalid"]) == (1, 2)
    assert flexible["outcomes"] == {"right": 3, "wrong": 1, "no answer": 1}


def test_cut_off_answers_are_judged_and_counted_apart(evaluate, mock, sums: Path):
    def respond(body: dict[str, Any]) -> Reply:
        reply = right(body) if asked(body) != 8 else Reply("so 3 times", tokens=512)
        reply.finish_reason = "length" if asked(body) in (7, 8) else "stop"
        return reply

    ran = evaluate("gsm8k", mock(respond).url, "--data", sums)
    figures = ran.figures()
    assert (figures["cut_off"], figures["cut_off_correct"], figures["invalid"]) == (2, 1, 0)
    assert figures["accuracy"]["correct"] == 4
    assert figures["mean_output_tokens"] == (4 * 3 + 512) / 5
    assert "2 of 5 answers were cut off" in ran.out


def test_a_mean_is_not_made_of_some(evaluate, mock, sums: Path):
    """Without usage in one answer there is no mean number of tokens."""

    def respond(body: dict[str, Any]) -> Reply:
        raw = b'{"choices": [{"text": "#### 14", "finish_reason": "stop"}]}'
        return Reply(raw=raw) if asked(body) == 7 else right(body)

    ran = evaluate("gsm8k", mock(respond).url, "--data", sums)
    assert ran.status == 0
    assert ran.figures()["mean_output_tokens"] is None
    assert ran.figures()["accuracy"]["value"] == 1


def test_sampling_and_more_fields(evaluate, mock, sums: Path):
    server = mock(right)
    words = ("--temperature", 0.7, "--top-p", 0.9, "--seed", 40, "--max-tokens", 64)
    more = ("--extra-body", '{"top_k": 20}', "--no-token-ids", "--river", '{"threshold": 0.9}')
    ran = evaluate("gsm8k", server.url, "--data", sums, "--limit", 3, *words, *more)
    assert ran.status == 0, ran.err
    assert [seen.body["seed"] for seen in server.seen] == [40, 41, 42]
    body = server.seen[0].body
    assert {name: body[name] for name in ("temperature", "top_p", "max_tokens", "top_k")} == {
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 64,
        "top_k": 20,
    }
    assert body["river"] == {"threshold": 0.9}
    assert "return_token_ids" not in body
    assert "5 of 3" not in ran.out
    assert "3 of 3 answers do not tell their exit depths" in ran.out


def test_concurrency(evaluate, mock, sums: Path):
    def respond(body: dict[str, Any]) -> Reply:
        reply = right(body)
        reply.delay = 0.2
        return reply

    server = mock(respond)
    ran = evaluate("gsm8k", server.url, "--data", sums, "--concurrency", 3)
    assert ran.status == 0
    assert server.most_in_flight == 3
    assert [answer["id"] for answer in ran.answers] == ["6", "7", "8", "9", "10"]


def test_the_key_is_sent_and_not_written(evaluate, mock, sums: Path, tmp_path: Path):
    (tmp_path / "key").write_text("sesame\n")
    server = mock(right, key="sesame")
    assert evaluate("gsm8k", server.url, "--data", sums, "--model", "m").status == 1
    words = ("--model", "m", "--api-key-file", tmp_path / "key")
    ran = evaluate("gsm8k", server.url, "--data", sums, *words)
    assert ran.status == 0
    assert "sesame" not in ran.json_path.read_text() + ran.out
    assert server.seen[0].body["model"] == "m"


def body_of_add(prompt: str, wrong: tuple[int, ...] = ()) -> str:
    n = int(prompt.rpartition("def add_")[2].split("(")[0])
    return f"    return x + {n if n not in wrong else 99}\n"


def test_humaneval_completions(evaluate, mock, functions: Path):
    """One is wrong, one runs for ever, one is nothing, one is right."""
    answers = [
        "    return x + 5\n",
        "    while True: pass\n",
        "\n# nothing",
        "    return x + 3\n\n\nprint(x",
    ]
    server = mock(lambda body: Reply(answers[len(server.seen) - 1]))
    ran = evaluate("humaneval", server.url, "--data", functions, "--cpu-seconds", 1)
    assert ran.status == 0, ran.err
    assert server.seen[0].body["prompt"].startswith("import math\n\n\ndef add_0(x):")
    assert "\ndef " in server.seen[0].body["stop"]
    assert ran.figures()["outcomes"] == {
        "AssertionError": 1,
        "CPU time": 1,
        "no code": 1,
        "passed": 1,
    }
    assert (ran.figures()["accuracy"]["correct"], ran.figures()["invalid"]) == (1, 1)
    last = ran.answers[-1]
    assert last["id"] == "add/3"
    assert last["verdict"]["extracted"].endswith('"""Add 3 to x."""\n    return x + 3\n\n')
    assert ran.document["judging"]["limits"]["cpu_seconds"] == 1


def test_humaneval_chat(evaluate, mock, functions: Path):
    def respond(body: dict[str, Any]) -> Reply:
        prompt = body["messages"][0]["content"]
        return Reply(f"Here:\n```python\n{body_of_add(prompt)}```\nDone.")

    server = mock(respond)
    ran = evaluate("humaneval", server.url, "--data", functions, "--api", "chat", "--workers", 2)
    assert ran.status == 0, ran.err
    assert "stop" not in server.seen[0].body
    assert "```python\nimport math" in server.seen[0].body["messages"][0]["content"]
    assert ran.figures()["accuracy"]["correct"] == 4


def test_humaneval_with_examples(evaluate, mock, functions: Path):
    server = mock(lambda body: Reply(body_of_add(body["prompt"])))
    ran = evaluate("humaneval", server.url, "--data", functions, "--shots", 1)
    assert ran.status == 0, ran.err
    prompt = server.seen[0].body["prompt"]
    assert prompt.count("def add_") == 2
    assert '"""Add 0 to x."""\n    return x + 0\n\n\nimport math' in prompt
    assert ran.figures()["accuracy"]["total"] == 3
    assert "add_0" not in ran.answers[0]["verdict"]["extracted"]


def test_without_namespaces_humaneval_says_so(
    evaluate, mock, functions: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(isolation.shutil, "which", lambda name: None)
    server = mock(lambda body: Reply(body_of_add(body["prompt"])))
    ran = evaluate("humaneval", server.url, "--data", functions, "--limit", 1)
    assert ran.status == 0, ran.err
    assert "programs HAVE THE NETWORK" in ran.out
    assert any("NETWORK" in text for text in ran.document["warnings"])
