"""Command lines made from pydantic models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from server.cli.arguments import FieldsOf, OneLineParser, Options, Shown, add_options


class Other(Options):
    """A model of elsewhere."""

    deep: int = Field(default=3, ge=1)
    """how deep"""


class Inner(Options):
    """A group."""

    much: float = Field(default=0.5, gt=0)
    """how much, 50 % or so"""
    files: list[Path] = Field(default=[])
    """more than once (default: none)"""
    other: Annotated[dict[str, Any], FieldsOf(Other, ("deep",), "x-")] = Field(default={})


class Outer(Options):
    """Do something."""

    what: Annotated[str, Shown("WHAT", positional=True)]
    """``what`` to do"""
    size: Literal[32, 64] | None = None
    """of it (default: any)"""
    fast: bool = False
    """be quick"""
    ends: Annotated[tuple[Path, Path] | None, Shown("END")] = None
    """two of them"""
    more: Annotated[list[str], Shown("MORE", positional=True)] = Field(default=[])
    """of it (default: none)"""
    inner: Inner


def parse(*words: str) -> Outer:
    parser = OneLineParser(prog="outer", allow_abbrev=False)
    add_options(parser, Outer)
    found: Outer = parser.parse_args(words).options
    return found


def test_words_become_values_and_what_is_not_given_is_the_models_default() -> None:
    assert parse("x") == Outer(what="x", inner=Inner())
    assert parse("x").model_fields_set == {"what", "inner"}
    files = ("--files", "a", "--files", "b")
    found = parse("x", "--size", "64", "--fast", "--much", "2", *files, "--x-deep", "4")
    inner = Inner(much=2.0, files=[Path("a"), Path("b")], other={"deep": 4})
    assert found == Outer(what="x", size=64, fast=True, inner=inner)
    found = parse("x", "y", "z", "--ends", "a", "b")
    assert (found.more, found.ends) == (["y", "z"], (Path("a"), Path("b")))


def test_help_is_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    for line in ("WHAT what to do", "A group: --much X how much, 50 % or so (default: 0.5)"):
        assert line in text
    assert "more than once (default: none)" in text


@pytest.mark.parametrize(
    ("words", "named"),
    [(("x", "--much", "0"), "--much: '0'"), (("x", "--fas"), "--fast"), ((), "WHAT")],
)
def test_an_error_is_one_line(words: tuple[str, ...], named: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(*words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
