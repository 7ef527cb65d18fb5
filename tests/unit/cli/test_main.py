"""The ``river-vllm`` command."""

from __future__ import annotations

from typing import Any

import pytest

from river_vllm import __version__
from river_vllm.errors import RiverError
from server.cli import serve as serve_module
from server.cli.main import main


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["swim"], 2, "swim"),
        ([], 2, "COMMAND"),
        (["--version"], 0, __version__),
        *(
            ([command, "--help"], 0, "usage")
            for command in ("bench", "calibrate", "quantize", "eval")
        ),
    ],
)
def test_commands(argv: list[str], status: int, said: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == status
    assert said in "".join(capsys.readouterr())


def test_serve_gets_its_arguments_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(serve_module, "serve", lambda argv: given.append(argv) or 130)
    assert main(["serve", "model", "--help", "--port", "1"]) == 130
    assert given == [["model", "--help", "--port", "1"]]


def test_a_refusal_is_one_line_and_status_two(monkeypatch, capsys) -> None:
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
