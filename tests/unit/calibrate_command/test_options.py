"""The command line of calibrate: what is wrong is said before an engine starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cli.main import main


def _error(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    try:
        status = main(["calibrate", "no-model", *options])
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-agreement", "98"], "--target-agreement: '98': input should be less than 1"),
        (["--delta", "0"], "--delta"),
        (["--tokens", "1"], "--tokens: '1': input should be greater than or equal to 2"),
        (["--half", "third"], "--half"),
        (["--output", "/nowhere/x.yaml"], "--output: '/nowhere/x.yaml': expected a file in a"),
        (["--json", "a.yaml", "--output", "a.yaml"], "expected different files"),
        (["--check", "a.yaml", "--output", "b.yaml"], "--check: chooses nothing"),
        (["--answers", "answer"], "--answers, --half: name parts of the rows"),
        (["--half", "second"], "--answers, --half: name parts of the rows"),
        (["--check", "a.yaml", "--river-config", "b.yaml"], "--check: the file gives all"),
        (["--river-config", "none.yaml"], "river config 'none.yaml': No such file"),
        (["--river-quantizer", "best"], "--river-quantizer: invalid choice: 'best'"),
        (["--river-group-size", "7"], "--river-group-size: invalid choice: 7"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_one_line_names_the_option(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in _error(capsys, *options)


def test_what_cannot_be_measured_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "batch.yaml"
    file.write_text("scope: batch\n")
    assert "scope = 'batch'" in _error(capsys, "--river-config", str(file))


@pytest.mark.parametrize("option", ["--check", "--river-config"])
def test_a_backbone_that_ends_early_is_nothing_to_compare_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str
) -> None:
    file = tmp_path / "memory.yaml"
    file.write_text("threshold: 0.9\nresident_layers: 2\n")
    assert "calibrate: resident_layers = " in _error(capsys, option, str(file))
