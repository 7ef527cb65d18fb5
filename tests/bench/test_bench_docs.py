"""The documentation says what the program does, and its commands run."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from server.bench.compare_command import add_compare_options
from server.bench.formulas import COMPARE_FORMULAS, RUN_FORMULAS, Formula
from server.bench.run_command import add_run_options
from tests.docs.documents import Command, commands, options_of

DOCS = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
COMMANDS = commands("docs/bench.md", "river-vllm bench")


@pytest.mark.parametrize("formula", RUN_FORMULAS + COMPARE_FORMULAS, ids=lambda f: f.name)
def test_formulas_stand_in_the_documentation_word_for_word(formula: Formula):
    assert f"| {formula.name} | {formula.formula} | {formula.note} |" in DOCS


@pytest.mark.parametrize("add", [add_run_options, add_compare_options])
def test_every_option_is_documented(add):
    parser = argparse.ArgumentParser(add_help=False)
    add(parser)
    options = options_of(parser)
    assert len(options) > 20
    missing = [option for option in options if not re.search(rf"`{option}[ `]", DOCS)]
    assert missing == []


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_commands_run(
    command: Command, bench, mock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With fewer requests than they say. B is made faster by a wide margin, not by chance."""
    if "--html" in command.words:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    a, b = mock(ttft=0, itl=0.02).url, mock(ttft=0, itl=0.002).url
    at = {"http://127.0.0.1:8000": a, "http://127.0.0.1:8001": b}
    words = [at.get(word, word) for word in command.words[2:]]
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
