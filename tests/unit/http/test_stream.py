"""The report in streams: in the last chunk, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from server.http.report import StreamReport
from tests.unit.http.support import L, chunk, compact, exchange, payloads, sse

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


def test_the_last_chunk_gets_the_report_and_the_others_pass_as_they_are() -> None:
    assert run(STREAM) == sse(CHAT[0], CHAT[1], with_report(CHAT[2])) + DONE


def test_bytes_may_arrive_in_any_pieces() -> None:
    expected = run(STREAM)
    for size in range(len(STREAM) + 1):
        assert run(STREAM, size) == expected
    assert run(STREAM, *[1] * len(STREAM)) == expected


def test_only_chunks_that_may_be_the_last_wait() -> None:
    report = StreamReport(exchange(DEPTHS))
    assert report.feed(sse(CHAT[0])) == sse(CHAT[0])
    assert report.feed(sse(CHAT[2])) == b""
    assert report.feed(DONE) == sse(with_report(CHAT[2])) + DONE
    assert report.close() == b""


def test_the_report_is_that_of_the_end() -> None:
    """A choice's depths arrive with its last token, after its last chunk has been held."""
    import numpy as np

    empty = exchange()
    report = StreamReport(empty)
    report.feed(sse(CHAT[2]))
    empty.add(0, np.array(DEPTHS, dtype=np.int16))
    assert payloads(report.feed(DONE)) == [with_report(CHAT[2])]


def test_a_usage_chunk_comes_after_the_finish_and_takes_the_report() -> None:
    data = sse(*CHAT, USAGE) + DONE
    assert payloads(run(data)) == [*CHAT, with_report(USAGE)]


def test_with_two_choices_the_later_one_takes_the_report_and_each_its_trace() -> None:
    chunks = [chunk(0), chunk(1, finish="length"), chunk(0), chunk(0, finish="stop")]
    found = payloads(run(sse(*chunks) + DONE, trace=True, choices=2))
    assert [("river" in p) for p in found] == [False, False, False, True]
    traces = [p["choices"][0].get("river_trace") for p in found]
    assert traces == [None, [L, 3, 5], None, [L, 3, 5]]
    assert found[3]["river"]["tokens"] == 4


def test_a_choice_that_has_not_finished_has_no_trace_yet() -> None:
    both = {"choices": [*chunk(0, finish="stop")["choices"], *chunk(1)["choices"]]}
    found = payloads(run(sse(both) + DONE, trace=True, choices=2))
    assert ["river_trace" in choice for choice in found[0]["choices"]] == [True, False]


def test_no_trace_unless_asked_for() -> None:
    assert b"river_trace" not in run(STREAM)


def test_a_finish_that_its_usage_follows_still_gets_its_trace() -> None:
    found = payloads(run(sse(*CHAT, USAGE) + DONE, trace=True))
    assert found[2]["choices"][0]["river_trace"] == [L, 3, 5]
    assert "river" not in found[2]
    assert found[3]["river"] == exchange(DEPTHS).report()


def test_each_chunk_gets_the_layers_of_its_own_tokens() -> None:
    """Not the opening chunk or one that echoes a message: they hold none. Together they are the
    whole trace."""
    opening, echo = chunk(text=""), chunk(text="asked")
    opening["choices"][0]["delta"]["role"] = "assistant"
    for payload in (opening, echo):
        del payload["choices"][0]["token_ids"]
    made = exchange(DEPTHS, trace=True)
    report = StreamReport(made)
    out = b""
    layers_of = [[L], [], [], [], [3, 5]]
    for payload, layers in zip([opening, echo, *CHAT], layers_of, strict=True):
        made.stream(0, layers)
        out += report.feed(sse(payload))
    found = [p["choices"][0] for p in payloads(out + report.feed(DONE))]
    assert [c.get("river_trace_delta") for c in found] == [None, None, [L], None, [3, 5]]
    assert found[-1]["river_trace"] == [L, 3, 5]


def test_an_error_in_mid_stream_passes_with_nothing_added() -> None:
    error = {"error": {"message": "boom", "code": 500}}
    data = sse(CHAT[0], error) + DONE
    assert run(data) == data


def test_keep_alive_comments_do_not_release_what_waits() -> None:
    report = StreamReport(exchange(DEPTHS))
    report.feed(sse(CHAT[2]))
    assert report.feed(b": ping\n\n") == b": ping\n\n"
    assert payloads(report.feed(DONE)) == [with_report(CHAT[2])]


def test_a_stream_without_done_gets_its_report_at_the_end() -> None:
    assert run(sse(*CHAT)) == sse(CHAT[0], CHAT[1], with_report(CHAT[2]))


def test_a_stream_that_is_cut_keeps_its_last_bytes() -> None:
    cut = STREAM[: len(sse(CHAT[0])) + 9]
    assert run(cut) == cut


def test_text_that_looks_like_a_finish_is_not_held() -> None:
    report = StreamReport(exchange(DEPTHS))
    tricky = sse(chunk(text='"finish_reason":"stop" "choices":[]'))
    assert report.feed(tricky) == tricky


def test_lines_that_are_not_json_pass() -> None:
    data = b'data: {"finish_reason":"\n\n' + DONE
    assert run(data) == data


def responses_event(kind: str, **fields: Any) -> bytes:
    """As vLLM writes the Responses API: the event's own type comes last in its data."""
    return f"event: {kind}\n".encode() + b"data: " + compact({**fields, "type": kind}) + b"\n\n"


RESPONSE = {"id": "resp_1", "object": "response", "output": [], "pad": "x" * 400}


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
def test_the_responses_api_ends_with_an_event_that_holds_the_report(kind: str) -> None:
    delta = responses_event("response.output_text.delta", delta="hi", sequence_number=3)
    last = responses_event(kind, response=RESPONSE, sequence_number=4)
    out = run(delta + last, trace=True)
    assert out.startswith(delta + f"event: {kind}\n".encode())
    found = payloads(out)[1]
    expected = exchange(DEPTHS).report()
    assert found["river"] == expected
    assert found["response"]["river"] == expected
    assert found["response"]["river_trace"] == [L, 3, 5]
    assert found["response"]["id"] == "resp_1"


def test_vllms_last_responses_event_is_recognised() -> None:
    from vllm.entrypoints.openai.responses.protocol import ResponseCompletedEvent

    event = ResponseCompletedEvent.model_construct(
        type="response.completed", sequence_number=4, response=RESPONSE
    )
    data = f"event: {event.type}\ndata: {event.model_dump_json(warnings=False)}\n\n".encode()
    assert "river" in payloads(run(data))[0]


def test_other_responses_events_pass_as_they_are() -> None:
    text = 'they said "response.completed"'
    data = responses_event("response.created", response=RESPONSE) + responses_event(
        "response.output_text.delta", delta=text
    )
    assert run(data) == data
