"""What is told before anything is asked, and what the documentation says of the options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.cli.arguments import OneLineParser, add_options
from server.eval.options import EvalOptions
from tests.docs.documents import Command, commands, options_of

DOCS = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def parser_of_eval() -> OneLineParser:
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    add_options(parser, EvalOptions)
    return parser


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "TASK: expected one or more, or --samples"),
        ("task", "--against: expected it, --against-river or --against-model"),
        ("task --samples a b", "TASK: not with --samples"),
        ("--samples a b --limit 3", "--limit: not with --samples, which asks nothing"),
        ("--samples a", "--samples: expected 2 arguments"),
        ("task --limit 0", "--limit: '0': input should be greater than 0"),
        ("task --timeout soon", "--timeout: 'soon': input should be a valid integer"),
        ("task --against-river [1]", "--against-river: '[1]': expected a JSON object"),
        ("task --against-river {", "--against-river: '{': expected a JSON object"),
        ('task --against http://u --gen-kwargs {"river":{}}', "--gen-kwargs: 'river' has options"),
        ("--samples a b --confidence 1", "--confidence: '1': input should be less than 1"),
        ("--samples a b --max-loss -1", "--max-loss: '-1': input should be greater than or"),
        ("--samples a b --max-loss inf", "--max-loss: 'inf': input should be a finite number"),
        ("--base-url 127.0.0.1:1", "--base-url: '127.0.0.1:1': expected http://HOST:PORT"),
        ("--against ftp://x", "--against: 'ftp://x': expected http://HOST:PORT"),
        ("--json /no/such/f.json", "--json: '/no/such/f.json': expected a file in a folder"),
        ("--json .", "--json: '.': expected a file in a folder that exists"),
    ],
)
def test_bad_options(capsys, words: str, said: str):
    with pytest.raises(SystemExit) as stop:
        parser_of_eval().parse_args(words.split())
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_what_is_not_given_is_not_told():
    """``--json`` writes the options that were given."""
    options = parser_of_eval().parse_args(["--samples", "a", "b", "--json", "c"]).options
    told = options.model_dump(mode="json", exclude_unset=True)
    assert told == {"samples": ["a", "b"], "json_file": "c"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base-url", "http://127.0.0.1:9"], "http://127.0.0.1:9/v1: cannot be reached"),
        (["--model", "other"], "--model = 'other': expected one of fake"),
        (["--output", "."], "--output = '.': expected a folder without A and B in it"),
    ],
)
def test_what_cannot_be_used(capsys, fake, tmp_path, monkeypatch, words: list[str], said: str):
    from server.cli.main import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "B").mkdir()
    server = fake(lambda body: "")
    url = [] if "--base-url" in words else ["--base-url", server.url]
    assert main(["eval", "task", "--against-river", "{}", *url, *words]) == 2
    assert f"river-vllm: error: {said}" in capsys.readouterr().err


def test_every_option_is_documented():
    parser = parser_of_eval()
    missing = [option for option in options_of(parser) if not re.search(rf"`{option}[ `]", DOCS)]
    assert missing == []
    assert "river_gsm8k" in parser.format_help()


@pytest.mark.parametrize("command", commands("docs/", "river-vllm eval"), ids=str)
def test_documented_commands_are_whole(command: Command):
    parser_of_eval().parse_args(command.words[2:])
