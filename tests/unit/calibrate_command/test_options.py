"""The command line of calibrate: what is wrong is said before an engine starts."""

from __future__ import annotations

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
    ("options", "named"),
    [
        (["--target-agreement", "98"], "--target-agreement: '98'"),
        (["--output", "/nowhere/x.yaml"], "--output: '/nowhere/x.yaml'"),
        (["--json", "a.yaml", "--output", "a.yaml"], "different files"),
        (["--check", "a.yaml", "--output", "b.yaml"], "--check"),
        (["--half", "second"], "--answers, --half"),
        (["--check", "a.yaml", "--river-config", "b.yaml"], "--check"),
        (["--river-config", "none.yaml"], "'none.yaml'"),
        (["--river-group-size", "7"], "--river-group-size"),
    ],
)
def test_one_line_names_the_option(capsys, tmp_path, monkeypatch, options: list[str], named: str):
    monkeypatch.chdir(tmp_path)
    assert named in _error(capsys, *options)


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--river-config", "scope: batch"),
        ("--check", "resident_layers: 2"),
        ("--river-config", "resident_layers: 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(capsys, tmp_path, option: str, setting: str) -> None:
    """With a backbone that ends early there is nothing to compare with."""
    file = tmp_path / "river.yaml"
    file.write_text(f"threshold: 0.9\n{setting}\n")
    assert f"{setting.partition(':')[0]} = " in _error(capsys, option, str(file))
