"""A mixed load for the soak: thresholds of all kinds, clients that leave, requests that are bad."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, takewhile
from typing import Any

import httpx

from tests.support.poison import CHAT, TEXT, Poison, corpus
from tests.support.prompts import PROMPTS
from tests.support.server import NAME

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
