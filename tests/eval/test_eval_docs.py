"""The documentation says what the program does, and its commands run."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from server.evaluate.compare_command import add_compare_options
from server.evaluate.figures.statistics import mcnemar_exact, paired_interval, wilson_interval
from server.evaluate.run_command import GSM8K_SHOTS, add_gsm8k_options, add_humaneval_options
from server.evaluate.sandbox.limits import OPEN_FILES, PROCESSES, Limits
from server.evaluate.tasks.code import STOP
from tests.docs.documents import Command, commands, options_of
from tests.evaluate.conftest import right
from tests.evaluate.mock import Reply

DOCS = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = commands("docs/evaluation.md", "river-vllm eval")
ALL = (add_gsm8k_options, add_humaneval_options, add_compare_options)


@pytest.mark.parametrize("add", ALL)
def test_every_option_is_documented(add):
    parser = argparse.ArgumentParser(add_help=False)
    add(parser)
    missing = [option for option in options_of(parser) if not re.search(rf"`{option}[ `]", DOCS)]
    assert missing == []


def test_there_are_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_commands_run(
    command: Command,
    evaluate,
    mock,
    sums: Path,
    functions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    sums.rename("gsm8k.jsonl")
    functions.rename("humaneval.jsonl")
    server = mock(lambda body: Reply("    pass") if "def add" in str(body) else right(body))
    for name in ("default", "other") if "compare" in command.words else ():
        words = ("gsm8k", server.url, "--data", "gsm8k.jsonl")
        assert evaluate(*words, json_name=f"{name}.json").status == 0
    words = [re.sub(r"http://127\.0\.0\.1:800\d", server.url, word) for word in command.words[2:]]
    ran = evaluate(*words)
    assert ran.status == 0, ran.err + ran.out


def test_figures_of_the_text():
    low, high = wilson_interval(100, 200, 0.95)
    assert (high - low) / 2 == pytest.approx(0.07, abs=0.003)
    low, high = paired_interval(7, 3, 200, 0.95)
    assert (high - low) / 2 == pytest.approx(0.03, abs=0.004)
    assert f"p = {mcnemar_exact(7, 3):.2f}" in DOCS


def test_defaults_and_limits_of_the_text():
    limits = Limits()
    for shown in (
        f"| `--cpu-seconds S` | {limits.cpu_seconds} s |",
        f"| `--wall-seconds S` | {limits.wall_seconds:g} s |",
        f"| `--memory-mib N` | {limits.memory_mib} MiB |",
        f"| open files | | {OPEN_FILES} |",
        f"user is not root | | {PROCESSES} |",
        f"{GSM8K_SHOTS} for `gsm8k`, 0 for `humaneval`",
    ):
        assert shown in DOCS
    for stop in STOP:
        word = stop.strip()
        assert f"`{word}`" in DOCS or word == "```"
