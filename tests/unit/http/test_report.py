"""The report in complete responses."""

from __future__ import annotations

import json

import pytest

from server.http.report import add_to_json
from tests.unit.http.support import L, compact, exchange

DEPTHS = [-L, 3, 5]

COMPLETION = {
    "object": "chat.completion",
    "choices": [
        {"index": 0, "text": "å", "finish_reason": "stop"},
        {"index": 1, "text": "b", "finish_reason": "length"},
    ],
}


def test_a_complete_response_gets_the_report() -> None:
    body = json.loads(add_to_json(compact(COMPLETION), exchange(DEPTHS, [-L, 7])))
    assert body.pop("river") == exchange(DEPTHS, [-L, 7]).report()
    assert body == COMPLETION


def test_each_choice_of_a_complete_response_gets_its_own_trace() -> None:
    made = exchange(DEPTHS, [-L, 7], trace=True)
    body = json.loads(add_to_json(compact(COMPLETION), made))
    assert [c["river_trace"] for c in body["choices"]] == [[L, 3, 5], [L, 7]]
    assert "river_trace" not in body


def test_a_response_without_choices_holds_the_trace_itself() -> None:
    body = json.loads(add_to_json(compact({"object": "response"}), exchange(DEPTHS, trace=True)))
    assert body["river_trace"] == [L, 3, 5]
    assert body["river"]["tokens"] == 2


@pytest.mark.parametrize("body", [b'{"error":{"code":400}}', b"[1,2]", b'"text"'])
def test_what_is_no_response_stays_as_it_is(body: bytes) -> None:
    assert add_to_json(body, exchange(DEPTHS)) == body


def test_an_error_field_of_a_finished_response_is_no_error() -> None:
    """The Responses API has ``"error": null`` in every response."""
    body = json.loads(add_to_json(b'{"object":"response","error":null}', exchange(DEPTHS)))
    assert body["river"]["tokens"] == 2


def test_a_response_with_tool_calls_has_the_trace_of_every_turn() -> None:
    """vLLM calls its engine again after each call of a built-in tool."""
    made = exchange(DEPTHS, [-L, 7], [-L], trace=True)
    body = json.loads(add_to_json(compact({"object": "response"}), made))
    assert body["river_trace"] == [L, 3, 5, L, 7, L]
    assert body["river"]["tokens"] == 3


def test_a_response_that_is_made_in_the_background_has_no_report_yet() -> None:
    body = b'{"object":"response","status":"queued","output":[]}'
    assert add_to_json(body, exchange()) == body
