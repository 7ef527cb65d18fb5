"""The documentation says what the program does, and its commands run."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from server.bench.compare_command import add_compare_options
from server.bench.formulas import COMPARE_FORMULAS, RUN_FORMULAS, Formula
from server.bench.run_command import add_run_options

DOCS = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^river-vllm bench (.*)$", DOCS, re.MULTILINE)


@pytest.mark.parametrize("formula", RUN_FORMULAS + COMPARE_FORMULAS, ids=lambda f: f.name)
def test_formulas_stand_in_the_documentation_word_for_word(formula: Formula):
    assert f"| {formula.name} | {formula.formula} | {formula.note} |" in DOCS


@pytest.mark.parametrize("add", [add_run_options, add_compare_options])
def test_every_option_is_documented(add):
    parser = argparse.ArgumentParser(add_help=False)
    add(parser)
    options = re.findall(r"--[a-z-]+", " ".join(parser.format_usage().split()))
    assert len(options) > 20
    missing = [option for option in options if not re.search(rf"`{option}[ `]", DOCS)]
    assert missing == []


def test_every_documented_option_exists():
    known = set()
    for add in (add_run_options, add_compare_options):
        parser = argparse.ArgumentParser()
        add(parser)
        known |= set(re.findall(r"--[a-z-]+", parser.format_help()))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", DOCS)) <= known


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, bench, mock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With fewer requests than they say. B is made faster by a wide margin, not by chance."""
    if "--html" in command:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    a, b = mock(ttft=0, itl=0.02).url, mock(ttft=0, itl=0.002).url
    words = shlex.split(
        command.replace("http://127.0.0.1:8000", a).replace("http://127.0.0.1:8001", b)
    )
    words += ["--output-tokens", "4"]
    if "compare" in words:
        words += ["--rounds", "2"]
    else:
        words += ["--num-requests", "3"]
    if "--rate" in words:
        words += ["--rate", "50"]
    ran = bench(*words)
    assert ran.status == 0, ran.err + ran.out
    assert "completed" in ran.out


def test_there_are_commands():
    assert len(COMMANDS) >= 6
