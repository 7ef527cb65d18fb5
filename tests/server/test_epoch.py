"""A live change of τ is a new epoch of the prefix cache, seen from outside."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.forms import form
from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine

BLOCK = 32
ANSWER = 90


@pytest.fixture
def dial(server: RiverServer) -> Iterator[Any]:
    """Changes the default threshold; the old one comes back."""
    before = server.get("/river").json()["threshold"]

    def turn(threshold: float) -> None:
        response = httpx.patch(server.url + "/river", json={"threshold": threshold})
        assert response.status_code == 200

    yield turn
    turn(before)


def _ask(server: RiverServer, prompt: Any, tokens: int) -> tuple[list[int], int, int]:
    """Prompt and answer as tokens, the prompt's length, and its tokens out of the cache."""
    body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    answer = server.post(
        "/v1/completions", body | {"ignore_eos": True, "return_token_ids": True}
    ).json()
    (choice,) = answer["choices"]
    usage = answer["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    tokens_of_all = [*choice["prompt_token_ids"], *choice["token_ids"]]
    return tokens_of_all, usage["prompt_tokens"], cached


def _whole(tokens: int) -> int:
    return (tokens - 1) // BLOCK * BLOCK


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    form(
        short=[(0.9, 1.0, False), (1.0, -1.0, True)],
        long=[(-1.0, 1.0, False), (0.9, 0.97, False), (1.0, -1.0, True), (1.0, 1.0, True)],
    ),
)
def test_the_second_turn_after_a_change(
    server: RiverServer, dial: Any, first: float, second: float, shared: bool
) -> None:
    """An answer from before the change is read by those after it only where it is exact."""
    dial(first)
    fresh = f"{uuid.uuid4()} Here is a long story about the sea and the people who live by it."
    talk, prompt_tokens, _ = _ask(server, fresh, ANSWER)
    dial(second)
    _, _, cached = _ask(server, [*talk, 5, 6, 7, 8], 1)
    # The last generated token was never an input: its K/V is not there.
    expected = _whole(len(talk)) if shared else _whole(prompt_tokens + 1)
    assert cached == expected
    assert _whole(len(talk)) >= _whole(prompt_tokens + 1) + 2 * BLOCK
