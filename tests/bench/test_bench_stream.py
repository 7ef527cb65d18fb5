"""Event framing and what a chunk says, from bytes alone."""

from __future__ import annotations

import json

import pytest

from server.bench.chunk import ChunkError, parse_chunk
from server.bench.sse import EventParser

EVENTS = ['{"text":"wörd 𝄞"}', '{"a":\n"b"}', "[DONE]"]


def encode(newline: str) -> bytes:
    text = ": keep-alive\n\n"
    for data in EVENTS:
        text += "event: x\n" + "".join(f"data: {line}\n" for line in data.split("\n")) + "\n"
    return text.replace("\n", newline).encode()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_split_of_the_bytes_gives_the_same_events(newline: str):
    raw = encode(newline)
    for cut in range(len(raw) + 1):
        parser = EventParser()
        assert parser.feed(raw[:cut]) + parser.feed(raw[cut:]) == EVENTS


def test_byte_by_byte():
    parser, found = EventParser(), []
    for byte in encode("\n"):
        found += parser.feed(bytes([byte]))
    assert found == EVENTS


@pytest.mark.parametrize(
    ("tail", "whole"),
    [("data: [DONE]", True), ("data: [DONE]\n", True), ("data: {", False), ("", False)],
)
def test_done_without_an_empty_line_still_counts(tail: str, whole: bool):
    parser = EventParser()
    assert parser.feed(b"data: 1\n\n" + tail.encode()) == ["1"]
    assert parser.ends_with_done() is whole


def test_not_utf8_is_an_error():
    with pytest.raises(UnicodeDecodeError):
        EventParser().feed(b"data: \xff\n\n")


def chat(**choice: object) -> str:
    return json.dumps({"choices": [{"index": 0, **choice}]})


@pytest.mark.parametrize(
    ("data", "output", "role_only"),
    [
        (chat(delta={"role": "assistant", "content": ""}), False, True),
        (chat(delta={"role": "assistant", "content": "a"}), True, False),
        (chat(delta={"content": ""}), False, False),
        (chat(delta={"reasoning_content": "hm"}), True, False),
        (chat(delta={"tool_calls": [{"index": 0}]}), True, False),
        (chat(text="a"), True, False),
        (chat(text=""), False, False),
    ],
)
def test_what_counts_as_output(data: str, output: bool, role_only: bool):
    chunk = parse_chunk(data)
    assert chunk.choice
    assert (chunk.output, chunk.role_only) == (output, role_only)


def test_role_with_a_finish_reason_is_not_just_a_role():
    chunk = parse_chunk(chat(delta={"role": "assistant"}, finish_reason="stop"))
    assert not chunk.role_only
    assert chunk.finish_reason == "stop"


def test_usage_chunk_has_no_choice():
    body = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}, "river": {"a": 1}}
    chunk = parse_chunk(json.dumps(body))
    assert (chunk.choice, chunk.prompt_tokens, chunk.completion_tokens) == (False, 3, 5)
    assert chunk.river == {"a": 1}


@pytest.mark.parametrize(
    ("error", "message"),
    [({"message": "boom", "code": 500}, "boom"), ("Unauthorized", "Unauthorized")],
)
def test_error_objects(error: object, message: str):
    assert parse_chunk(json.dumps({"error": error})).error == message


@pytest.mark.parametrize("data", ["{", "[]", "1", "not json", '{"a": NaN}', "[" * 100_000])
def test_nonsense_is_refused(data: str):
    with pytest.raises(ChunkError):
        parse_chunk(data)
