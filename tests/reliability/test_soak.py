"""A mixed load for a while: nothing leaks, nothing fails, and every token is counted once.

Thresholds of all kinds, clients that leave, requests that are bad; memory, files and tasks of the
server are sampled meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, takewhile
from statistics import median
from typing import Any

import httpx
import psutil
import pytest

from tests.support import probe
from tests.support.forms import form
from tests.support.poison import CHAT, TEXT, Poison, corpus
from tests.support.poll import poll_until
from tests.support.processes import Belongings
from tests.support.prompts import PROMPTS
from tests.support.server import NAME, RiverServer
from tests.support.wellness import assert_well, idle

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]

SECONDS = float(os.environ.get("RIVER_SOAK_SECONDS", form(short=12, long=900)))
WARM_UP = form(short=3, long=60)
CLIENTS = 6
MAX_GROWTH = 64.0
"""MiB of all processes together in the second half; allocators keep what they once had. In the
long form thousands of requests come after the first half: 20 KiB kept of each would be seen."""
CANCELLED, POISON = 10, 20
"""Every tenth request is cancelled, every twentieth is bad: 10 % and 5 %."""
AT_LEAST = 40
"""Requests of a load, however short or slow."""
SETTINGS: list[dict[str, Any] | None] = [
    None,
    {"enabled": False},
    {"threshold": 1.0},
    {"threshold": -1.0},
    {"threshold": 0.8, "min_layers": 2},
    {"threshold": 0.9, "trace": True},
    {"threshold": 0.97},
]


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


@dataclass
class Tally:
    """What the clients have seen."""

    ends: Counter[str] = field(default_factory=Counter)
    """``finished``, ``cancelled``, ``poison`` and everything that should not be."""
    choices: int = 0
    completion_tokens: int = 0
    decode_tokens: int = 0
    """Of the reports."""


async def load(url: str, seconds: float, clients: int, seed: int) -> Tally:
    """Each client sends one request after the other until the time is over."""
    tally = Tally()
    poisons = [poison for poison in corpus() if not poison.name.startswith("heavy")]
    end = time.monotonic() + seconds
    numbers = takewhile(lambda n: n < AT_LEAST or time.monotonic() < end, count())
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        await asyncio.gather(
            *(
                _client(http, random.Random(seed + i), poisons, numbers, tally)
                for i in range(clients)
            )
        )
    return tally


async def _client(
    http: httpx.AsyncClient,
    rng: random.Random,
    poisons: list[Poison],
    numbers: Iterator[int],
    tally: Tally,
) -> None:
    for number in numbers:
        if number % POISON == POISON - 1:
            tally.ends[await _poison(http, rng.choice(poisons))] += 1
        elif number % CANCELLED == 2:
            tally.ends[await _cancelled(http, rng, tally)] += 1
        else:
            tally.ends[await _answered(http, _body(rng, rng.randint(4, 40)), tally)] += 1


async def _poison(http: httpx.AsyncClient, poison: Poison) -> str:
    response = await http.post(poison.path, content=poison.body, headers=poison.headers)
    refused = response.status_code in poison.allowed
    return "poison" if refused else f"{poison.name}: {response.status_code}"


async def _cancelled(http: httpx.AsyncClient, rng: random.Random, tally: Tally) -> str:
    try:
        async with asyncio.timeout(rng.uniform(0.05, 0.8)):
            return await _answered(http, _body(rng, 800) | {"ignore_eos": True}, tally)
    except TimeoutError:
        return "cancelled"


def _body(rng: random.Random, tokens: int) -> dict[str, Any]:
    settings = rng.choice(SETTINGS)
    prompt = rng.choice(PROMPTS)
    body: dict[str, Any] = {
        "model": NAME,
        "max_tokens": tokens,
        "stream": rng.random() < 0.5,
        "temperature": rng.choice([0.0, 0.8]),
    }
    if body["temperature"] and rng.random() < 0.3:
        body["n"] = 2
    if settings is not None:
        body["river"] = settings
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    if rng.random() < 0.5:
        return body | {"prompt": prompt}
    return body | {"messages": [{"role": "user", "content": prompt}]}


async def _answered(http: httpx.AsyncClient, body: dict[str, Any], tally: Tally) -> str:
    path = TEXT if "prompt" in body else CHAT
    async with http.stream("POST", path, json=body) as response:
        content = await response.aread()
    if response.status_code != 200:
        return f"{response.status_code}: {content[:200]!r}"
    last = _last_event(content) if body["stream"] else json.loads(content)
    if "usage" not in last or "river" not in last:
        return f"incomplete: {content[-200:]!r}"
    tally.choices += body.get("n", 1)
    tally.completion_tokens += last["usage"]["completion_tokens"]
    tally.decode_tokens += last["river"]["tokens"]
    return "finished"


def _last_event(content: bytes) -> dict[str, Any]:
    events = content.removesuffix(b"data: [DONE]\n\n").strip().split(b"\n\n")
    event: dict[str, Any] = json.loads(events[-1].removeprefix(b"data:"))
    return event


@dataclass
class Watch:
    """A thread that samples the memory of all of a server's processes every ``period`` seconds."""

    server: RiverServer
    period: float
    mib: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._end = threading.Event()
        self._processes = Belongings.of(self.server.process.pid).processes
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self.period):
            self.mib.append(sum(p.memory_info().rss for p in self._processes) / 2**20)

    def growth(self) -> float:
        """MiB from the end of the first half to the end, medians of a few samples."""
        half = len(self.mib) // 2
        few = max(1, half // 4)
        return median(self.mib[-few:]) - median(self.mib[half : half + few])


def held(server: RiverServer) -> dict[str, int]:
    """Open files of each process and tasks of the event loop, to be read when it is idle."""
    processes = Belongings.of(server.process.pid).processes
    files = {f"files of {_title(p)}": p.num_fds() for p in processes}
    return {**files, "processes": len(processes), "tasks": int(server.get(probe.PATH).text)}


def totals(server: RiverServer) -> dict[str, float]:
    """Counters of vLLM and of River that must agree."""
    return {
        "finished": server.sum_of("vllm:request_success_total"),
        "generated": server.sum_of("vllm:generation_tokens_total"),
        "generated, finished": server.sum_of("vllm:request_generation_tokens_sum"),
        "first tokens": server.sum_of("vllm:time_to_first_token_seconds_count"),
        "river": server.sum_of("river_tokens_total"),
        "depths": server.sum_of("river_exit_layer_count"),
        "stats": float(server.get("/river/stats").json()["tokens"]),
    }


def _title(process: psutil.Process) -> str:
    return " ".join(process.cmdline())[:40] or str(process.pid)
