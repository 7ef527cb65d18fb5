"""Bad arguments: one line that names option, value and what is allowed; exit status 2."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from server.bench.command import add_parser
from server.bench.compare_command import compare_command
from server.bench.run_command import run_command

URL = "http://127.0.0.1:9"

BAD = [
    (["--concurrency", "0"], "--concurrency", "'0'", "at least 1"),
    (["--concurrency", "1,1"], "--concurrency", "'1,1'", "values that differ"),
    (["--concurrency", "1,x"], "--concurrency", "'x'", "whole number"),
    (["--rate", "-1"], "--rate", "-1", ""),
    (["--rate=nan"], "--rate", "'nan'", "above 0"),
    (["--rate", "1", "--concurrency", "1"], "--concurrency", "--rate", "not allowed"),
    (["--num-requests", "1.5"], "--num-requests", "'1.5'", "whole number"),
    (["--duration", "inf"], "--duration", "'inf'", "above 0"),
    (["--cancel-rate", "1.1"], "--cancel-rate", "'1.1'", "from 0 to 1"),
    (["--cancel-after", "3"], "--cancel-after", "--cancel-rate", "only with"),
    (["--arrivals", "constant"], "--arrivals", "--rate", "only with"),
    (["--slo", "speed:3"], "--slo", "'speed:3'", "ttft|itl|tpot|e2e"),
    (["--slo", "ttft:0"], "--slo", "'ttft:0'", "above 0"),
    (["--slo", "ttft:1", "--slo", "ttft:2"], "--slo", "ttft, ttft", "once"),
    (["--river", "[1]"], "--river", "'[1]'", "JSON object"),
    (["--river", '{"threshold": NaN}'], "--river", "NaN", "JSON object"),
    (["--extra-body", '{"stream": false}'], "--extra-body", "stream", "set by the client"),
    (["--prompt-words", "9:3"], "--prompt-words", "'9:3'", "LOW:HIGH"),
    (
        ["--max-completion-tokens", "--api", "completions"],
        "--max-completion-tokens",
        "chat",
        "only",
    ),
    (["--prompt-field", "q"], "--prompt-field", "", "only with --dataset"),
    (["--dataset", "/no/such/file"], "--dataset", "'/no/such/file'", "No such file"),
    (["--api", "responses"], "--api", "'responses'", "chat"),
    (["--api-key-env", "NO_SUCH_VARIABLE"], "--api-key-env", "'NO_SUCH_VARIABLE'", "not set"),
    (["--csv", "/no/such/folder/x"], "--csv", "/no/such/folder/x", "folder that exists"),
    (["--concurency", "1"], "--concurency", "", "unrecognized"),
]


@pytest.mark.parametrize(("words", "option", "value", "allowed"), BAD)
def test_bad_arguments(bench, words: list[str], option: str, value: str, allowed: str):
    ran = bench(URL, *words)
    assert ran.status == 2
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1
    for part in (option, value, allowed):
        assert part in ran.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--fail-below", "speed:1"], "'speed:1'"),
        (["--fail-below", "x"], "ttft|itl|tpot|e2e|requests|tokens"),
        (["--fail-below", "1", "--fail-below", "tpot:2"], "tpot, tpot"),
        (["--confidence", "1"], "between 0 and 1"),
        (["--rounds", "0"], "at least 1"),
    ],
)
def test_bad_arguments_of_compare(bench, words: list[str], says: str):
    ran = bench("compare", URL, URL, *words)
    assert ran.status == 2
    assert len(ran.err.splitlines()) == 1
    assert says in ran.err


def test_a_bad_url(bench):
    ran = bench("127.0.0.1:8000")
    assert (ran.status, len(ran.err.splitlines())) == (2, 1)
    assert "'127.0.0.1:8000'" in ran.err


def test_two_outputs_may_not_share_a_file(bench, tmp_path: Path):
    ran = bench(URL, "--csv", tmp_path / "out.json")
    assert ran.status == 2
    assert "the same file as --json" in ran.err


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="river-vllm")
    add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", *words])


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ((URL,), run_command),
        (("run", URL), run_command),
        (("--concurrency", "2", URL), run_command),
        (("compare", URL, URL), compare_command),
    ],
)
def test_run_is_the_default_command(words: tuple[str, ...], command: Callable):
    assert parse(*words).run is command


def test_help_names_both_commands(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as leaving:
        parse("--help")
    assert leaving.value.code == 0
    out = capsys.readouterr().out
    assert "river-vllm bench URL" in out
    assert "river-vllm bench compare A B" in out


@pytest.mark.parametrize("command", [[], ["compare"]])
def test_explain_prints_the_formulas_without_an_endpoint(bench, command: list[str]):
    ran = bench(*command, "--explain")
    assert ran.status == 0
    assert "TPOT = (E2E − TTFT) / (completion_tokens − 1)" in ran.out


def test_html_without_matplotlib_says_what_to_install(
    bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name)
    )
    ran = bench(URL, "--html", tmp_path / "report.html")
    assert ran.status == 2
    assert "pip install 'river-vllm[bench]'" in ran.err
