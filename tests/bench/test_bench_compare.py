"""``river-vllm bench compare`` against servers of known behaviour."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.docs.documents import Command, commands

COMMANDS = commands("docs/bench.md", "river-vllm bench")
QUICK = ("--prompt-words", 3, "--output-tokens", 8, "--warmup", 0)


def prompts(server) -> list[str]:
    return [body["messages"][0]["content"] for body in server.bodies]


def test_the_same_prompts_in_alternating_order(compare, mock) -> None:
    """One server for both sides sees the order; two see the same prompts."""
    one = mock()
    names = ("--model-a", "a", "--model-b", "b", "--rounds", 3)
    assert compare(one.url, one.url, *QUICK, *names, "--cache-salt").status == 0
    assert [body["model"] for body in one.bodies] == ["a", "b", "b", "a", "a", "b"]
    compare(one.url, one.url, *QUICK, *names, "--cache-salt")
    salts = {body["cache_salt"] for body in one.bodies}
    assert len(salts) == 12, "a server that is up keeps what an earlier run has asked"
    a, b = mock(), mock()
    ran = compare(a.url, b.url, *QUICK, "--rounds", 3, "--warmup", 1)
    assert prompts(a) == prompts(b)
    assert len(set(prompts(a))) == 4
    assert ran.document["rounds_counted"] == 3


def test_a_turn_begins_with_short_requests_that_are_not_measured(compare, mock) -> None:
    a, b = mock(), mock()
    words = ("--rounds", 2, "--block", 2, "--wake", 1)
    ran = compare(a.url, b.url, *QUICK, *words)
    for server in (a, b):
        assert [body["max_tokens"] for body in server.bodies] == [2, 8, 8, 2, 8, 8]
    assert ran.document["sides"]["A"]["sent"] == 4


def test_a_slower_server_is_told_from_a_faster_one(compare, mock) -> None:
    """A's gaps are 20 ms or more by its own clock, B's none: above 2 leaves room for gaps of B
    that are 10 ms late on a busy machine, in the median."""
    a, b = mock(itl=0.02), mock()
    ran = compare(a.url, b.url, *QUICK, "--rounds", 4, "--fail-below", 2)
    assert ran.status == 0
    (tpot,) = (ratio for ratio in ran.document["ratios"] if ratio["metric"] == "tpot")
    assert tpot["median"] > 2
    assert compare(b.url, a.url, *QUICK, "--rounds", 4, "--fail-below", 1).status == 1


def test_failures_of_one_side_are_shown_and_fail_a_gate(compare, mock) -> None:
    a, b = mock(), mock(refuse_every=2)
    words = (a.url, b.url, *QUICK, "--rounds", 4)
    ran = compare(*words)
    assert (ran.status, ran.document["rounds_counted"]) == (0, 2)
    assert "2 failed" in ran.out and "HTTP 503: no room" in ran.out
    assert compare(*words, "--fail-below", "requests:0.001").status == 1


def test_each_side_has_its_own_river_and_key(compare, mock, monkeypatch) -> None:
    monkeypatch.setenv("KEY_A", "aaa")
    monkeypatch.setenv("KEY_B", "bbb")
    depths = {"num_layers": 8, "tokens": 4, "exit_layers": {"2": 3, "8": 1}, "held": 1}
    a, b = mock(key="aaa"), mock(key="bbb", river=depths)
    keys = ("--api-key-env", "KEY_A", "--api-key-env-b", "KEY_B")
    river = ("--river-a", '{"enabled": false}', "--river-b", '{"threshold": 0.8}')
    ran = compare(a.url, b.url, *QUICK, *keys, *river, "--rounds", 2, "--extra-body", '{"x": 1}')
    assert ran.status == 0
    assert [body["river"] for body in a.bodies + b.bodies] == (
        [{"enabled": False}] * 2 + [{"threshold": 0.8}] * 2
    )
    assert all(body["x"] == 1 for body in a.bodies)
    found = ran.document["sides"]["B"]["river"]
    assert (found["mean_exit_layer"], found["held"], found["tokens"]) == (3.5, 2, 8)
    assert "bbb" not in str(ran.document)


def test_rows_of_a_file(compare, mock, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"question": "one"}\n{"messages": [{"role": "user", "content": "two"}]}\n')
    a, b = mock(), mock()
    ran = compare(a.url, b.url, *QUICK, "--rounds", 3, "--prompts", file)
    assert prompts(a) == ["one", "two", "one"]
    assert "more than once" in ran.out
    ran = compare(a.url, b.url, "--prompts", file, "--api", "completions")
    assert (ran.status, "line 2: 'messages'" in ran.err) == (2, True)


def test_rows_that_are_not_measured_are_others(compare, mock, tmp_path: Path) -> None:
    """A measured one would lie in the prefix cache."""
    file = tmp_path / "prompts.txt"
    file.write_text("one\ntwo\nthree\nfour\nfive\nsix\nseven\n")
    a, b = mock(), mock()
    words = ("--prompts", file, "--rounds", 2, "--warmup", 2, "--wake", 1)
    ran = compare(a.url, b.url, *QUICK, *words)
    assert prompts(a) == prompts(b) == ["seven", "six", "five", "one", "four", "two"]
    assert "the file is short" not in ran.out
    ran = compare(a.url, b.url, *QUICK, *words, "--block", 2)
    assert "the file is short" in ran.out


def test_the_page_shows_what_the_terminal_shows(compare, mock, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    for rounds, once_more in ((2, False), (3, True)):
        ran = compare(mock().url, mock().url, *QUICK, "--rounds", rounds, "--html", page)
        for text in (" ".join(ran.out.split()), page.read_text()):
            assert f"{rounds} rounds" in text
            assert ("one side went first once more" in text) is once_more


def test_a_request_that_wakes_is_short_whatever_the_others_are(compare, mock) -> None:
    a, b = mock(), mock()
    lengths = '{"min_tokens": 4, "max_completion_tokens": 9}'
    words = ("--rounds", 2, "--wake", 1, "--extra-body", lengths)
    assert compare(a.url, b.url, *QUICK, *words).status == 0
    short = [body for body in a.bodies if body["max_tokens"] == 2]
    assert short and not any("min_tokens" in body for body in short)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("http://a/v1/chat/completions", "http://b"), "base"),
        (("ftp://a", "http://b"), "A: 'ftp://a'"),
        *(
            (("http://a", "http://b", *option), option[0])
            for option in (
                ("--fail-below", "speed:1"),
                ("--river-b", "[1]"),
                ("--extra-body", '{"n": 2}'),
                ("--html", "/no/where"),
            )
        ),
        (("http://a", "http://b", "--html", "out.json"), "--json, --html"),
        (("http://a", "http://b", "--api-key-env", "NO_KEY"), "'NO_KEY'"),
        (("http://127.0.0.1:1", "http://b"), "cannot be reached"),
    ],
)
def test_one_line_names_what_is_wrong(compare, tmp_path, monkeypatch, words, named) -> None:
    monkeypatch.chdir(tmp_path)
    ran = compare(*(tmp_path / word if word == "out.json" else word for word in words))
    assert ran.status == (1 if named == "cannot be reached" else 2)
    (line,) = ran.err.splitlines()
    assert named in line


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [({"key": "k"}, "HTTP 401"), ({"models": ("x", "y")}, "2 models (x, y)")],
)
def test_an_endpoint_that_cannot_be_used(compare, mock, behaviour, message: str) -> None:
    ran = compare(mock(**behaviour).url, mock().url)
    assert (ran.status, message in ran.err) == (1, True)


def test_ctrl_c_keeps_the_rounds_that_were_finished(mock, tmp_path: Path) -> None:
    server, file = mock(itl=0.01), tmp_path / "out.json"
    words = (server.url, server.url, *QUICK, "--rounds", 10_000, "--json", file)
    command = [sys.executable, "-m", "server.cli.main", "bench", "compare", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while len(server.bodies) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert (out != "", err) == (True, "")  # no bar, since it is no terminal
    document = json.loads(file.read_text())
    assert document["interrupted"] is True
    assert 1 <= document["rounds_counted"] <= document["rounds"] < 10_000


def test_neither_torch_nor_vllm_is_imported() -> None:
    code = """
import importlib, pkgutil, sys, server.bench
for module in pkgutil.walk_packages(server.bench.__path__, "server.bench."):
    importlib.import_module(module.name)
found = {"torch", "vllm", "transformers", "matplotlib"} & set(sys.modules)
sys.exit(" ".join(found) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_documented_commands_run(command: Command, compare, mock, tmp_path: Path) -> None:
    """With fewer requests than they say. B is made faster by a wide margin, not by chance."""
    at = {"http://127.0.0.1:8000": mock(itl=0.02).url, "http://127.0.0.1:8001": mock().url}
    words = [at.get(word, word) for word in command.words[3:]]
    words = [str(tmp_path / word) if word.endswith(".html") else word for word in words]
    ran = compare(*words, "--output-tokens", 4, "--rounds", 2)
    assert ran.status == 0, ran.err + ran.out
