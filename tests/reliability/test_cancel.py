"""Clients that leave, many at once, streamed and not."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.support.forms import form
from tests.support.server import NAME, RiverServer
from tests.support.wellness import assert_well

pytestmark = pytest.mark.engine

STORM = form(short=40, long=100)
"""Clients of each kind; the server takes 16 at once, the others wait."""
PATIENCE = 1.5
LONG = {
    **{"model": NAME, "prompt": "Once upon a time", "max_tokens": 900, "ignore_eos": True},
    "river": {"threshold": 0.9},
}


def test_a_cancel_storm(server: RiverServer) -> None:
    """Every client loses patience, none gets an answer or an error; then the server is itself."""
    ends = asyncio.run(_storm(server.url, [True, False] * STORM))
    assert set(ends) <= {"timed out", "left"}, ends
    assert ends.total() == 2 * STORM
    assert_well(server)


async def _storm(url: str, streams: list[bool]) -> Counter[str]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=PATIENCE) as client:
        return Counter(await asyncio.gather(*(_leave(client, stream) for stream in streams)))


async def _leave(client: httpx.AsyncClient, stream: bool) -> str:
    body: dict[str, Any] = {**LONG, "stream": stream}
    if not stream:
        body |= {"n": 2, "temperature": 1.0}
    try:
        async with asyncio.timeout(PATIENCE):
            async with client.stream("POST", "/v1/completions", json=body) as response:
                await response.aread()
                return f"answered {response.status_code}"
    except httpx.TimeoutException:
        return "timed out"
    except TimeoutError:
        return "left"
