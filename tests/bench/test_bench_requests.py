"""What one request reports, whatever the server does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from server.bench.request import Answer, ask, make_client
from tests.support.mock_openai import MockServer


def answer_of(
    server: MockServer, tokens: int = 4, chat: bool = True, seconds: float = 30
) -> Answer:
    route, prompt = "completions", {"prompt": "a"}
    if chat:
        route, prompt = "chat/completions", {"messages": [{"role": "user", "content": "a"}]}

    async def run() -> Answer:
        async with make_client() as client:
            body = {**prompt, "max_tokens": tokens}
            return await ask(client, f"{server.url}/v1/{route}", {}, body, seconds)

    return asyncio.run(run())


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    "behaviour",
    [{}, {"separate_finish": True}, {"newline": "\r\n"}, {"tokens_per_chunk": 4}],
    ids=str,
)
def test_a_whole_answer(mock: Callable[..., MockServer], behaviour: dict, chat: bool) -> None:
    found = answer_of(mock(**behaviour), chat=chat)
    assert found.error is None
    assert (found.finish_reason, found.prompt_tokens, found.completion_tokens) == ("length", 7, 4)
    assert found.first is not None
    assert found.finished is not None
    assert 0 < found.first <= found.finished


def test_the_first_token_is_output_and_not_the_role(mock: Callable[..., MockServer]) -> None:
    """Sleeps bound the times from below: the role comes at once, the first text after 50 ms."""
    found = answer_of(mock(ttft=0.05, itl=0.02))
    assert found.first is not None
    assert found.first >= 0.05
    assert found.finished is not None
    assert found.finished >= 0.05 + 3 * 0.02
    assert found.tpot == pytest.approx((found.finished - found.first) / 3)


@pytest.mark.parametrize(
    ("tokens", "behaviour"), [(1, {}), (1, {"usage": False}), (4, {"text": ""})]
)
def test_no_time_per_token_where_it_cannot_be_known(
    mock: Callable[..., MockServer], tokens: int, behaviour: dict
) -> None:
    """An answer without text has the time of its end."""
    found = answer_of(mock(**behaviour), tokens)
    assert (found.error, found.tpot) == (None, None)
    assert "text" not in behaviour or found.first == found.finished


def test_without_usage_a_chunk_is_a_token(mock: Callable[..., MockServer]) -> None:
    found = answer_of(mock(usage=False), 4)
    assert found.completion_tokens == 4
    assert found.tpot is not None


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ({"refuse_every": 1}, "HTTP 503: no room"),
        ({"error_every": 1}, "error in the stream: engine died"),
        ({"cut_every": 1}, "closed"),
        ({"nonsense": True}, "malformed"),
        ({"finish_reason": None}, "without finish_reason"),
        ({"done": False}, "without [DONE]"),
        ({"finish_reason": "abort"}, "the server gave the answer up"),
        ({"content_type": "text/html"}, "text/event-stream"),
        ({"hang": True}, "no end within 0.3 s"),
    ],
    ids=str,
)
def test_what_the_server_does_wrong_is_told(
    mock: Callable[..., MockServer], behaviour: dict, error: str
) -> None:
    found = answer_of(mock(**behaviour), seconds=0.3 if "hang" in behaviour else 30)
    assert error in (found.error or "")


def test_no_server(mock: Callable[..., MockServer]) -> None:
    server = mock()
    server.url = "http://127.0.0.1:1"
    assert "connection" in (answer_of(server).error or "")
