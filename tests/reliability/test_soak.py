"""A mixed load for a while: nothing leaks, nothing fails, and every token is counted once."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from tests.reliability.load import CANCELLED, POISON, load
from tests.reliability.watch import Watch, held, totals
from tests.support.forms import form
from tests.support.poll import poll_until
from tests.support.server import RiverServer
from tests.support.wellness import assert_well, idle

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]

SECONDS = float(os.environ.get("RIVER_SOAK_SECONDS", form(short=12, long=900)))
WARM_UP = form(short=3, long=60)
CLIENTS = 6
MAX_GROWTH = 64.0
"""MiB of all processes together in the second half; allocators keep what they once had. In the
long form thousands of requests come after the first half: 20 KiB kept of each would be seen."""


def test_soak(server: RiverServer, record_property: Any) -> None:
    asyncio.run(load(server.url, WARM_UP, CLIENTS, seed=1))
    assert_well(server)
    held_before, before = held(server), totals(server)
    with Watch(server, period=max(0.5, SECONDS / 200)) as watch:
        tally = asyncio.run(load(server.url, SECONDS, CLIENTS, seed=100))
    poll_until(lambda: idle(server), 30, "gauges at zero")
    gained = {name: value - before[name] for name, value in totals(server).items()}
    report = {
        "seconds": SECONDS,
        "requests": dict(tally.ends),
        "tokens": gained["generated"],
        "MiB": (round(watch.mib[0]), round(watch.mib[-1])),
        "growth of the second half, MiB": round(watch.growth(), 1),
        "MiB a minute": round(watch.slope(), 2),
    }
    print("\nsoak:", report)
    record_property("soak", report)

    assert set(tally.ends) == {"finished", "cancelled", "poison"}, tally.ends
    requests = tally.ends.total()
    assert abs(tally.ends["poison"] - requests / POISON) <= 1
    # One that is asked to leave late may have been answered first.
    assert tally.ends["cancelled"] >= requests / CANCELLED / 2

    # What finished: vLLM's own counters say what the clients were told.
    assert gained["finished"] == tally.choices
    assert gained["generated, finished"] == tally.completion_tokens
    assert tally.decode_tokens == tally.completion_tokens - tally.choices
    # Everything, with what was cut short: a choice's first token comes out of its prompt.
    assert gained["river"] == gained["generated"] - gained["first tokens"]
    assert gained["river"] == gained["depths"] == gained["stats"]
    assert gained["generated"] >= tally.completion_tokens

    assert watch.growth() < MAX_GROWTH, report
    poll_until(lambda: _no_more(held(server), held_before), 30, f"files, tasks: {held(server)}")
    assert_well(server)


def _no_more(now: dict[str, int], before: dict[str, int]) -> bool:
    return now.keys() == before.keys() and all(now[name] <= before[name] for name in now)
