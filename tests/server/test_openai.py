"""An hour of a user with the official ``openai`` client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine

ASK = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


EXITS = {"threshold": 0.9}
TRACED = EXITS | {"trace": True}


def _chat(server: RiverServer, river: Any, tokens: int, extra: Any = None, **options: Any) -> Any:
    """An answer, greedy unless ``options`` say otherwise."""
    options = {"messages": ASK, "temperature": 0, **options}
    body = {"river": river, **(extra or {})}
    create = server.openai().chat.completions.create
    return create(model=NAME, max_tokens=tokens, extra_body=body, **options)


def _check(report: dict[str, Any], completion_tokens: int, choices: int = 1) -> None:
    """The report adds up: one token of each choice comes out of the prefill."""
    assert report["num_layers"] == 30
    assert report["tokens"] == completion_tokens - choices
    assert sum(report["exit_layers"].values()) == report["tokens"]
    layers = sum(int(layer) * count for layer, count in report["exit_layers"].items())
    assert report["mean_exit_layer"] == pytest.approx(layers / report["tokens"], abs=1e-3)


def test_chat(server: RiverServer) -> None:
    answer = _chat(server, TRACED, 24)
    assert answer.choices[0].message.content
    _check(answer.river, answer.usage.completion_tokens)
    assert answer.river["threshold"] == 0.9
    assert answer.river["mean_exit_layer"] < 10
    trace = answer.choices[0].river_trace
    assert len(trace) == answer.usage.completion_tokens
    assert trace[0] == 30


@pytest.mark.parametrize("usage", [True, False])
def test_stream(server: RiverServer, usage: bool) -> None:
    """The report is in the last chunk and in no other; tokens arrive one by one before it."""
    options = {"include_usage": True} if usage else None
    chunks = list(_chat(server, TRACED, 12, stream=True, stream_options=options))
    reports = [getattr(chunk, "river", None) for chunk in chunks]
    assert all(report is None for report in reports[:-1])
    texts = [c.choices[0].delta.content for c in chunks if c.choices]
    assert "".join(text or "" for text in texts)
    finish = next(c.choices[0] for c in chunks if c.choices and c.choices[0].finish_reason)
    _check(reports[-1], len(finish.river_trace))
    deltas = [getattr(c.choices[0], "river_trace_delta", []) for c in chunks if c.choices]
    joined = [layer for delta in deltas for layer in delta]
    assert joined == finish.river_trace, "each token's layer arrives with its chunk"
    assert sum(map(bool, deltas)) > 1
    assert (chunks[-1].choices == []) is usage
    assert len(chunks) >= len(finish.river_trace)


def test_a_chunk_that_echoes_has_no_layers(server: RiverServer) -> None:
    said = {"role": "assistant", "content": "The first one is"}
    echo = {"echo": True, "add_generation_prompt": False}
    chunks = _chat(server, TRACED, 4, echo, messages=[*ASK, said], stream=True)
    choices = [chunk.choices[0] for chunk in chunks]
    first = next(choice for choice in choices if choice.delta.content)
    assert first.delta.content == said["content"]
    assert not hasattr(first, "river_trace_delta")


def test_stream_equals_plain(server: RiverServer) -> None:
    request: dict[str, Any] = {
        "model": NAME,
        "prompt": "The three primary colours are",
        "max_tokens": 20,
        "temperature": 0,
        "extra_body": {"river": TRACED},
    }
    client = server.openai()
    plain = client.completions.create(**request)
    chunks = list(client.completions.create(**request, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == plain.choices[0].text
    assert chunks[-1].choices[0].river_trace == plain.choices[0].river_trace
    assert chunks[-1].river == plain.river


def test_completions_with_two_prompts_and_two_choices(server: RiverServer) -> None:
    river = {"threshold": -1.0, "min_layers": 4, "trace": True}
    answer = server.openai().completions.create(
        model=NAME,
        prompt=["One, two,", "Red, green,"],
        max_tokens=9,
        n=2,
        temperature=0.8,
        seed=1,
        extra_body={"river": river, "ignore_eos": True},
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        assert choice.river_trace == [30] + [4] * 8
    assert answer.river["exit_layers"] == {"4": 32}


def test_a_stream_of_two_choices(server: RiverServer) -> None:
    extra = {"ignore_eos": True}
    chunks = list(_chat(server, TRACED, 10, extra, n=2, temperature=0.7, stream=True))
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(choice.index for choice in choices) == [0, 1]
    assert all(len(choice.river_trace) == 10 for choice in choices)
    _check(chunks[-1].river, completion_tokens=20, choices=2)


def _respond(server: RiverServer, **options: Any) -> Any:
    return server.openai().responses.create(
        model=NAME,
        input="What is the capital of France?",
        max_output_tokens=16,
        temperature=0,
        extra_body={"river": TRACED},
        **options,
    )


def test_responses(server: RiverServer) -> None:
    answer = _respond(server)
    assert answer.output_text
    _check(answer.river, answer.usage.output_tokens)
    assert len(answer.river_trace) == answer.usage.output_tokens
    last = list(_respond(server, stream=True))[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.river == last.response.river
    _check(last.river, last.response.usage.output_tokens)


def test_structured_output(server: RiverServer) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    form = {"name": "city", "schema": schema, "strict": True}
    wanted = {"type": "json_schema", "json_schema": form}
    answer = _chat(server, EXITS, 64, response_format=wanted)
    value = json.loads(answer.choices[0].message.content)
    assert isinstance(value["city"], str) and isinstance(value["big"], bool)
    assert answer.river["mean_exit_layer"] < 30


def test_tools(server: RiverServer) -> None:
    answer = _chat(
        server,
        EXITS,
        128,  # room for the end of the call, however the model spaces it
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)
    assert sum(answer.river["exit_layers"].values()) == answer.usage.completion_tokens - 1
