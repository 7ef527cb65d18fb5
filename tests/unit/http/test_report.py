"""The report in complete responses, and in the last chunk of streams."""

from __future__ import annotations

import json
from typing import Any

import pytest

from river_vllm.modes import mode_of
from river_vllm.request import RiverSettings
from server.http.exchange import RiverExchange
from server.http.report import StreamReport, add_to_json
from tests.unit.http.support import DEFAULTS, VERIFIED, L, chunk, compact, exchange, payloads, sse

DONE = b"data: [DONE]\n\n"
DEPTHS = [-L, 3, 5]


def run(data: bytes, *sizes: int, trace: bool = False, choices: int = 1) -> bytes:
    """A whole stream, fed in pieces of ``sizes`` (and then the rest)."""
    report = StreamReport(exchange(*[DEPTHS] * choices, trace=trace))
    out = b""
    for size in sizes:
        out += report.feed(data[:size])
        data = data[size:]
    return out + report.feed(data) + report.close()


def with_report(payload: dict[str, Any], choices: int = 1) -> dict[str, Any]:
    return {**payload, "river": exchange(*[DEPTHS] * choices).report()}


CHAT = [chunk(text='å\n\n"finish_reason":"stop"'), chunk(text="b"), chunk(finish="stop")]
STREAM = sse(*CHAT) + DONE
USAGE = {"id": "c", "choices": [], "usage": {"completion_tokens": 3}}


def test_the_last_chunk_gets_the_report_in_whatever_pieces_bytes_arrive() -> None:
    expected = sse(CHAT[0], CHAT[1], with_report(CHAT[2])) + DONE
    for size in range(len(STREAM) + 1):
        assert run(STREAM, size) == expected
    assert run(STREAM, *[1] * len(STREAM)) == expected


def test_only_chunks_that_may_be_the_last_wait() -> None:
    report = StreamReport(exchange(DEPTHS))
    assert report.feed(sse(CHAT[0])) == sse(CHAT[0])
    assert report.feed(sse(CHAT[2])) == b""
    assert report.feed(DONE) == sse(with_report(CHAT[2])) + DONE
    assert report.close() == b""


def test_a_usage_chunk_after_the_finish_takes_the_report_and_the_finish_its_trace() -> None:
    found = payloads(run(sse(*CHAT, USAGE) + DONE, trace=True))
    assert found[2]["choices"][0]["river_trace"] == [L, 3, 5]
    assert "river" not in found[2]
    assert found[3] == with_report(USAGE)


def test_keep_alive_comments_do_not_release_what_waits() -> None:
    report = StreamReport(exchange(DEPTHS))
    report.feed(sse(CHAT[2]))
    assert report.feed(b": ping\n\n") == b": ping\n\n"
    assert payloads(report.feed(DONE)) == [with_report(CHAT[2])]


def test_a_stream_without_done_gets_its_report_at_the_end() -> None:
    assert run(sse(*CHAT)) == sse(CHAT[0], CHAT[1], with_report(CHAT[2]))


def responses_event(kind: str, **fields: Any) -> bytes:
    """As vLLM writes the Responses API: the event's own type comes last in its data."""
    return f"event: {kind}\n".encode() + b"data: " + compact({**fields, "type": kind}) + b"\n\n"


RESPONSE = {"id": "resp_1", "object": "response", "output": [], "pad": "x" * 400}


@pytest.mark.parametrize(
    "data",
    [
        sse(CHAT[0], {"error": {"message": "boom", "code": 500}}) + DONE,
        STREAM[: len(sse(CHAT[0])) + 9],
        b'data: {"finish_reason":"\n\n' + DONE,
        responses_event("response.created", response=RESPONSE),
        responses_event("response.output_text.delta", delta='they said "response.completed"'),
    ],
    ids=["error", "cut", "no JSON", "created", "delta"],
)
def test_what_is_no_end_passes_as_it_is(data: bytes) -> None:
    assert run(data) == data


@pytest.mark.parametrize("body", [b'{"error":{"code":400}}', b"[1,2]", b'"text"'])
def test_what_is_no_response_stays_as_it_is(body: bytes) -> None:
    assert add_to_json(body, exchange(DEPTHS)) == body


def test_a_response_holds_the_trace_of_every_turn_itself() -> None:
    """vLLM calls its engine again after each call of a built-in tool; an error may be null."""
    made = exchange(DEPTHS, [-L, 7], [-L], trace=True)
    body = json.loads(add_to_json(b'{"object":"response","error":null}', made))
    assert body["river_trace"] == [L, 3, 5, L, 7, L]
    assert body["river"]["tokens"] == 3


def test_a_response_that_is_made_in_the_background_has_no_report_yet() -> None:
    body = b'{"object":"response","status":"queued","output":[]}'
    assert add_to_json(body, exchange()) == body


@pytest.mark.parametrize("settings", [DEFAULTS, VERIFIED])
def test_the_report_is_as_the_api_description_says(settings: RiverSettings) -> None:
    described = mode_of(settings).schema["properties"]
    assert set(described) == set(RiverExchange(settings, L).report())
