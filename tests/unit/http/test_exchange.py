"""One request's settings and exit layers."""

from __future__ import annotations

import json

import numpy as np

from tests.unit.http.support import exchange


def test_report_of_a_request_before_any_token() -> None:
    report = exchange().report()
    assert (report["tokens"], report["mean_exit_layer"], report["exit_layers"]) == (0, None, {})


def test_report_adds_up_choices_and_leaves_the_prompts_token_out() -> None:
    report = exchange([-12, 12], [-12, 3, 11, 3]).report()
    assert report["tokens"] == 4
    assert report["mean_exit_layer"] == 7.25
    assert list(report["exit_layers"].items()) == [("3", 2), ("11", 1), ("12", 1)]
    json.dumps(report)
    assert exchange([1, 1, 2]).report()["mean_exit_layer"] == 1.333


def test_traces_are_kept_by_choice_whose_tokens_come_in_parts() -> None:
    made = exchange([-12, 3], [-12, 5, 6])
    made.add(0, np.array([5], dtype=np.int16))
    assert [made.trace_of(index) for index in range(3)] == [[12, 3, 5], [12, 5, 6], []]


def test_calls_of_one_request_number_their_choices_in_order() -> None:
    made = exchange()
    assert [made.next_call(2), made.next_call(1), made.next_call(3)] == [0, 2, 3]


def test_layers_on_their_way_are_given_once_and_only_where_a_trace_was_asked_for() -> None:
    made = exchange(trace=True)
    made.stream(1, [12])
    made.stream(1, [3, 4])
    assert made.take_unsent(1) == [12, 3, 4]
    assert made.take_unsent(1) == made.take_unsent(0) == []
    silent = exchange()
    silent.stream(0, [3])
    assert silent.take_unsent(0) == []
