"""What is told before anything is asked."""

from __future__ import annotations

import pytest

from server.cli.arguments import OneLineParser, add_options
from server.cli.main import main
from server.eval.options import EvalOptions


def parser_of_eval() -> OneLineParser:
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    add_options(parser, EvalOptions)
    return parser


TWO = "--samples a b"
BAD = {
    "TASK": ("", f"task {TWO}"),
    "--limit": (f"{TWO} --limit 3", "task --limit 0"),
    "--against": ("task", "--against ftp://x"),
    "--samples": ("--samples a",),
    "--against-river": ("task --against-river [1]", "task --against-river {"),
    "--gen-kwargs: 'river'": ('task --against http://u --gen-kwargs {"river":{}}',),
    "--confidence: '1'": (f"{TWO} --confidence 1",),
    "--max-loss": (f"{TWO} --max-loss -1", f"{TWO} --max-loss inf"),
    "--base-url: '127.0.0.1:1'": ("--base-url 127.0.0.1:1",),
    "--json": ("--json /no/such/f.json", "--json ."),
}


@pytest.mark.parametrize(
    ("words", "named"), [(words, named) for named, table in BAD.items() for words in table]
)
def test_bad_options(capsys, words: str, named: str):
    with pytest.raises(SystemExit) as stop:
        parser_of_eval().parse_args(words.split())
    assert stop.value.code == 2
    assert named in capsys.readouterr().err


def test_what_is_not_given_is_not_told():
    """``--json`` writes the options that were given."""
    options = parser_of_eval().parse_args(["--samples", "a", "b", "--json", "c"]).options
    told = options.model_dump(mode="json", exclude_unset=True)
    assert told == {"samples": ["a", "b"], "json_file": "c"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base-url", "http://127.0.0.1:9"], "http://127.0.0.1:9/v1"),
        (["--model", "other"], "--model = 'other'"),
        (["--output", "."], "--output = '.'"),
    ],
)
def test_what_cannot_be_used(capsys, fake, tmp_path, monkeypatch, words: list[str], said: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "B").mkdir()
    server = fake(lambda body: "")
    url = [] if "--base-url" in words else ["--base-url", server.url]
    assert main(["eval", "task", "--against-river", "{}", *url, *words]) == 2
    assert f"river-vllm: error: {said}" in capsys.readouterr().err
