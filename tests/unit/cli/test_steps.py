"""Progress of long commands where standard error is no terminal."""

from __future__ import annotations

import pytest

from server.cli.output import Steps


def test_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 4.0, 11.0, 12.0, 25.0, 36.0])
    with Steps(True, clock=lambda: next(times)) as steps:
        steps.step("layers", 28)
        for _ in range(4):
            steps.done()
        bar = steps.requests("answers")(total=3, desc="of vLLM's own")
        bar.update(2)
        bar.close()
        # vLLM shows how it renders prompts by the same class, which is no part of the work.
        assert list(steps.requests("none")([1, 2], desc="Rendering")) == [1, 2]
    written = capsys.readouterr().err.splitlines()
    assert written == ["layers: 2 of 28, 11 s", "layers: 4 of 28, 25 s", "answers: 2 of 3, 36 s"]


def test_no_line_where_none_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 100.0])
    with Steps(False, clock=lambda: next(times)) as steps:
        steps.step("layers", 2)
        steps.done()
    assert capsys.readouterr().err == ""
