"""A failed request fails the evaluation, and never improves a figure."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from server.evaluate import evaluation
from server.evaluate.sandbox.program import SandboxError
from server.evaluate.tasks import humaneval
from tests.evaluate.conftest import asked, right
from tests.evaluate.mock import Reply


@pytest.mark.parametrize(
    ("reply", "kind", "reason"),
    [
        (Reply("no room", status=503), "HTTP 503", "no room"),
        (Reply(raw=b"oops", status=500), "HTTP 500", "oops"),
        (Reply(raw=b"{"), "malformed answer", "{"),
        (Reply(raw=b"[]"), "malformed answer", "[]"),
        (Reply(raw=b'{"choices": []}'), "malformed answer", "one choice"),
        (Reply(raw=b'{"choices": [{"finish_reason": "stop"}]}'), "malformed answer", "no text"),
        (Reply(raw=b'{"choices": [{"text": 1}]}'), "malformed answer", "no text"),
        (Reply(finish_reason=None), "ended without finish_reason", "None"),
        (Reply(finish_reason="abort"), "finish_reason abort", "gave the answer up"),
        (Reply(delay=1.5), "timeout", "within 0.5 s"),
    ],
)
def test_one_failed_request(evaluate, mock, sums: Path, reply: Reply, kind: str, reason: str):
    server = mock(lambda body: reply if asked(body) == 8 else right(body))
    ran = evaluate("gsm8k", server.url, "--data", sums, "--timeout", 0.5 if reply.delay else 60)
    assert ran.status == 1
    figures = ran.figures()
    assert (figures["failed"], figures["judged"], figures["errors"]) == (1, 4, {kind: 1})
    assert figures["accuracy"] is None
    assert figures["other"] == {}
    (failure,) = ran.document["failures"]
    assert failure.startswith("A: 1 of 5 requests failed")
    assert reason in failure
    assert failure.replace("\n", " ")[:40] in ran.out
    assert len(ran.answers) == 5


def test_all_failed(evaluate, mock, sums: Path):
    ran = evaluate("gsm8k", mock(lambda body: Reply(status=500)).url, "--data", sums)
    assert ran.status == 1
    assert ran.figures()["failed"] == 5
    assert ran.figures()["mean_output_tokens"] is None
    assert "5 of 5 requests failed (HTTP 500: 5)" in ran.out


def test_a_server_that_stops(evaluate, mock, sums: Path):
    """Its connections break while later questions are still to come."""
    server = mock(right)

    def respond(body: dict[str, Any]) -> Reply:
        if asked(body) == 8:
            server._server.socket.close()
            raise ConnectionError
        return right(body)

    server.respond = respond
    server._server.handle_error = lambda *_: None
    ran = evaluate("gsm8k", server.url, "--data", sums, "--model", "m")
    assert ran.status == 1
    assert ran.figures()["errors"] == {"no connection": 3}


def test_no_server(evaluate, sums: Path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        ran = evaluate("gsm8k", url, "--data", sums)
    assert ran.status == 1
    assert "cannot be reached" in ran.err
    assert ran.err.count("\n") == 1
    assert not ran.json_path.exists()


def test_one_failed_side_leaves_no_comparison(evaluate, mock, sums: Path):
    def respond(body: dict[str, Any]) -> Reply:
        fails = asked(body) == 9 and body["river"]["threshold"] == 0.9
        return Reply(status=503) if fails else right(body)

    ran = evaluate(
        "gsm8k",
        mock(respond).url,
        *("--data", sums, "--river", '{"threshold": 1}', "--river-b", '{"threshold": 0.9}'),
    )
    assert ran.status == 1
    assert ran.document["paired"] is None
    assert ran.figures("A")["accuracy"]["value"] == 1
    assert ran.figures("B")["accuracy"] is None
    assert "B: 1 of 5 requests failed" in ran.out


def test_a_program_that_could_not_be_run_is_no_wrong_answer(
    evaluate, mock, functions: Path, monkeypatch: pytest.MonkeyPatch
):
    async def run_program(source: str, *_: object) -> None:
        raise SandboxError("no more processes")

    monkeypatch.setattr(humaneval, "run_program", run_program)
    server = mock(lambda body: Reply("    return x\n"))
    ran = evaluate("humaneval", server.url, "--data", functions, "--limit", 2)
    assert ran.status == 1
    assert ran.figures()["errors"] == {"not judged": 2}
    assert "no more processes" in ran.out
    assert ran.answers[0]["text"] == "    return x\n"


def test_halves_of_surrogate_pairs_survive_the_file(evaluate, mock, sums: Path):
    raw = b'{"choices": [{"text": "\\ud800 2", "finish_reason": "stop"}]}'
    words = ("gsm8k", mock(lambda body: Reply(raw=raw)).url, "--data", sums, "--limit", 1)
    assert evaluate(*words, json_name="a.json").status == 0
    ran = evaluate(*words, json_name="b.json")
    assert ran.answers[0]["text"] == "\\ud800 2"
    a = ran.json_path.with_name("a.json")
    assert evaluate("compare", a, ran.json_path).status == 0


def test_an_interrupt_while_asking_keeps_what_has_come(
    evaluate, mock, sums: Path, monkeypatch: pytest.MonkeyPatch
):
    """What Ctrl-C does: the main task is cancelled, here by the fourth request."""
    tasks: list[asyncio.Task] = []
    judge = evaluation.Evaluator._ask

    async def remember(self, *arguments) -> None:
        tasks.append(asyncio.current_task())
        await judge(self, *arguments)

    def respond(body: dict[str, Any]) -> Reply:
        if asked(body) == 9:
            tasks[0].get_loop().call_soon_threadsafe(tasks[0].cancel)
            return Reply(delay=0.5)
        return right(body)

    monkeypatch.setattr(evaluation.Evaluator, "_ask", remember)
    ran = evaluate("gsm8k", mock(respond).url, "--data", sums)
    assert ran.status == 130
    assert ran.document["interrupted"] is True
    assert [answer["outcome"] for answer in ran.answers] == ["completed"] * 3 + ["interrupted"]
    assert ran.figures()["accuracy"]["total"] == 3
    assert "interrupted" in ran.out
    refused = evaluate("compare", ran.json_path, ran.json_path, json_name="c.json")
    assert refused.status == 2
    assert "interrupted" in refused.err
    json.loads(ran.json_path.read_text())
