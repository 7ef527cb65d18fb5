"""Progress of the engine, on a clock of its own."""

from __future__ import annotations

import pytest

from server.telemetry.progress import Progress

READY: dict[str, tuple[str, bool]] = {
    "an idle engine is ready for ever": ("1000000", True),
    "work that waits": ("arrive 9.9", True),
    "work that waits too long is a stall": ("arrive 10.1", False),
    "every step is a sign of life": ("arrive" + " 9 step" * 5, True),
    "an answer is a sign of life while work waits": ("arrive" + " 9 ask answered" * 5, True),
    "a long idle time is no stall of the next request": ("500 arrive 5", True),
    "looking at an idle engine starts its clock anew": ("500 look busy 9.9", True),
    "more arrivals do not hide a stall": ("arrive" + " 4 arrive" * 4, False),
    "a stall that ends is over": ("arrive 50 step", True),
    "an engine that has become idle": ("arrive 50 step 50 idle", True),
    "an idle engine that is asked": ("500 ask 9", True),
    "an idle engine that does not answer is a stall": ("500 ask 11", False),
    "an answer that comes late": ("500 ask 11 answered 500", True),
}
"""What happens, with seconds between, and whether the server is ready then."""


@pytest.mark.parametrize("rule", READY)
def test_ready_while_the_engine_makes_progress(rule: str) -> None:
    events, ready = READY[rule]
    now, busy = 1000.0, False
    progress = Progress(10.0, lambda: now)
    progress.watch(lambda: busy)
    for event in events.split():
        if event == "look":
            assert progress.ready
        elif event in ("busy", "idle"):
            busy = event == "busy"
        elif event == "arrive":
            progress.arrival()
            busy = True
        elif event.isalpha():
            getattr(progress, event)()
        else:
            now += float(event)
    assert progress.ready is ready


def test_a_stall_says_for_how_long() -> None:
    now = 0.0
    progress = Progress(10.0, lambda: now)
    progress.watch(lambda: True)
    progress.arrival()
    now = 12.5
    assert progress.stalled_for() == pytest.approx(12.5)
