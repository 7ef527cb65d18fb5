"""Medians of calls that take turns."""

from __future__ import annotations

import pytest

from river_vllm.kernels import timing
from river_vllm.kernels.timing import medians
from tests.unit.kernels.support import Clock


class Work(Clock):
    """Calls that take the given seconds, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.log: list[str] = []
        monkeypatch.setattr(timing, "time", self)

    def takes(self, name: str, *seconds: float):
        left = iter(seconds)

        def call() -> None:
            self.log.append(name)
            self.now += next(left)

        return call


def test_one_late_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    calls = [work.takes("a", 2.0, 100.0, 2.0), work.takes("b", 1.0, 1.0, 7.0)]
    assert medians(calls, 3) == [2.0, 1.0]
    assert work.log == ["a", "b"] * 3


def test_warm_turns_and_what_runs_before_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    found = medians([work.takes("a", 100.0, 2.0)], 1, before=work.takes("scrub", 5.0, 5.0), warm=1)
    assert found == [2.0]
    assert work.log == ["scrub", "a"] * 2


def test_nothing_to_compare() -> None:
    assert medians([], 3) == []
