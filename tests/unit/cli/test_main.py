"""The ``river-vllm`` command."""

from __future__ import annotations

from typing import Any

import pytest

from river_vllm import __version__
from river_vllm.errors import RiverError
from server.cli import main as module
from server.cli import serve as serve_module
from server.cli.main import build_parser, main


def test_an_unknown_command_is_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["swim"])
    assert stop.value.code == 2
    assert "swim" in capsys.readouterr().err


def test_no_command_is_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for argument, text in (("--version", __version__), ("--help", "serve")):
        with pytest.raises(SystemExit) as stop:
            main([argument])
        assert stop.value.code == 0
        assert text in capsys.readouterr().out


@pytest.mark.parametrize("status", [0, 1, 130])
def test_serve_gets_its_arguments_as_they_are(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def serve(argv: list[str]) -> int:
        given.append(argv)
        return status

    monkeypatch.setattr(serve_module, "serve", serve)
    assert main(["serve", "model", "--help", "--port", "1"]) == status
    assert given == [["model", "--help", "--port", "1"]]


def test_a_refusal_is_one_line_and_status_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(argv: list[str]) -> int:
        raise RiverError("'threshold' = 2: too large")

    monkeypatch.setattr(serve_module, "serve", serve)
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == "river-vllm: error: 'threshold' = 2: too large\n"


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(argv: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(serve_module, "serve", serve)
    with pytest.raises(ZeroDivisionError):
        main(["serve"])


def test_every_command_that_is_listed_can_be_run() -> None:
    parser = build_parser()
    actions = [a for a in parser._actions if hasattr(a, "choices") and a.choices]
    names = [name for action in actions for name in action.choices or ()]
    assert {"serve", "bench"} <= set(names)
    for name in names:
        if name != "serve":
            with pytest.raises(SystemExit) as stop:
                module.main([name, "--help"])
            assert stop.value.code == 0
