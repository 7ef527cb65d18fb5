"""Progress of packing, on a terminal and in a log."""

from __future__ import annotations

import io

from river_vllm.weights.packing import PackingProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def pack(progress: PackingProgress, count: int) -> list[bool]:
    for _ in range(count):
        progress.expect()
    last = []
    for _ in range(count):
        progress.start()
        last.append(progress.step())
    return last


def test_a_log_gets_a_line_every_few_seconds() -> None:
    lines: list[str] = []
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    assert pack(PackingProgress(lines.append, stream=io.StringIO(), clock=clock), 12) == [
        *[False] * 11,
        True,
    ]
    assert lines == [
        "River: 5 of 12 projections in 4 bit (41 %), about 7 s left",
        "River: 10 of 12 projections in 4 bit (83 %), about 2 s left",
    ]


def test_a_terminal_gets_a_bar_and_the_log_nothing() -> None:
    lines: list[str] = []
    terminal = Terminal()
    pack(PackingProgress(lines.append, stream=terminal), 8)
    assert "Packing the river: 100%" in terminal.getvalue()
    assert "8/8" in terminal.getvalue()
    assert lines == []


def test_other_ranks_are_silent() -> None:
    lines: list[str] = []
    terminal = Terminal()
    progress = PackingProgress(lines.append, False, terminal, clock=iter(range(0, 999, 9)).__next__)
    assert pack(progress, 3)[-1]
    assert terminal.getvalue() == ""
    assert lines == []
