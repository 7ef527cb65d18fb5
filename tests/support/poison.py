"""Requests that once crashed, hung or confused a server of this kind; every one must be refused.

Taken from vLLM's own tests and issues (numbers beside the entries) and from River's fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.support.server import NAME

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
JSON = {"content-type": "application/json"}
DEEP = 2000


@dataclass(frozen=True)
class Poison:
    """One request.

    Attributes:
        body: raw bytes, because much of it no JSON library would write.
        allowed: statuses that are right; 4xx unless it says otherwise.
    """

    name: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    allowed: tuple[int, ...] = tuple(range(400, 500))

    def __str__(self) -> str:
        return self.name


def _chat(extra: str) -> bytes:
    messages = '"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2'
    return f'{{"model": "{NAME}", {messages}, {extra}}}'.encode()


def _text(extra: str, prompt: str = '"Hi"') -> bytes:
    return f'{{"model": "{NAME}", "prompt": {prompt}, "max_tokens": 2, {extra}}}'.encode()


def _responses(extra: str) -> bytes:
    return f'{{"model": "{NAME}", "input": "Hi", "max_output_tokens": 16, {extra}}}'.encode()


RIVER_FIELDS = {
    "NaN": '{"threshold": NaN}',
    "Infinity": '{"threshold": Infinity}',
    "minus Infinity": '{"threshold": -Infinity}',
    "1e999": '{"threshold": 1e999}',
    "-1e999": '{"threshold": -1e999}',
    "just above 1": '{"threshold": 1.0000000000000002}',
    "a number of 400 digits": '{"threshold": ' + "9" * 400 + "}",
    "a number of 5000 digits": '{"threshold": ' + "9" * 5000 + "}",
    "min_layers of 400 digits": '{"min_layers": ' + "9" * 400 + "}",
    "min_layers 2**63": '{"min_layers": 9223372036854775808}',
    "min_layers negative": '{"min_layers": -1}',
    "min_layers as float": '{"min_layers": 2.0}',
    "min_layers true": '{"min_layers": true}',
    "deep objects": '{"threshold": ' + '{"a": ' * DEEP + "1" + "}" * DEEP + "}",
    "deep lists": '{"threshold": ' + "[" * DEEP + "]" * DEEP + "}",
    "deep, but not too deep to parse": '{"threshold": ' + "[" * 400 + "]" * 400 + "}",
    "text": '{"threshold": "0.9"}',
    "unicode": '{"threshold": "τ = ½ \\u0000 \\ud800"}',
    "unknown unicode key": '{"\\ud800τ": 1}',
    "a key that is nothing": '{"": 1}',
    "prototype": '{"__proto__": {"threshold": 1}}',
    "last of two keys is wrong": '{"threshold": 0.5, "threshold": 7}',
    "last of two fields is wrong": '{"threshold": 0.5}, "river": {"threshold": 7}',
    "null": "null",
    "null inside": '{"enabled": null}',
    "number": "1",
    "list": '[{"threshold": 0.9}]',
    "text for all": '"off"',
    "many keys": "{" + ", ".join(f'"k{i}": {i}' for i in range(5000)) + "}",
}

GRAMMARS = {
    "schema that is none": '{"type": "json_schema"}',
    "schema of no object": '{"type": "json_schema", "json_schema": {"name": "x", "schema": 5}}',
    "schema of an unknown type": (
        '{"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strang"}}}'
    ),
    "unknown format": '{"type": "jsonn"}',
}

STRUCTURED = {
    "malformed regular expression": '{"regex": "[a-"}',  # vllm#17313
    "malformed grammar": '{"grammar": "root ::= ((("}',  # vllm#43920
    "empty JSON text": '{"json": ""}',  # vllm PR #45346
    "json_object false": '{"json_object": false}',
    "two at once": '{"regex": "a", "choice": ["b"]}',
    "none at all": "{}",
    "choices of nothing": '{"choice": []}',
    "structural tag that is none": '{"structural_tag": "no"}',
}

PARAMETERS = {
    "n zero": '"n": 0',
    "n huge": '"n": 1000000000',
    "n of 30 digits": '"n": ' + "9" * 30,
    "temperature NaN": '"temperature": NaN',
    "temperature Infinity": '"temperature": Infinity',
    "temperature 1e999": '"temperature": 1e999',
    "temperature negative": '"temperature": -1',
    "top_p NaN": '"top_p": NaN',
    "top_p above one": '"top_p": 1.5',
    "top_k far below zero": '"top_k": -7',
    "top_k of 30 digits": '"top_k": ' + "9" * 30,
    "min_p NaN": '"min_p": NaN',
    "presence_penalty NaN": '"presence_penalty": NaN',
    "repetition_penalty zero": '"repetition_penalty": 0',
    "repetition_penalty NaN": '"repetition_penalty": NaN',
    "min_tokens above max_tokens": '"min_tokens": 50',
    "max_tokens of 30 digits": '"max_tokens": ' + "9" * 30,
    "max_tokens negative": '"max_tokens": -5',
    "more tokens than the model holds": '"max_tokens": 100000',
    "seed of 30 digits": '"seed": ' + "9" * 30,
    "stop empty": '"stop": [""]',
    "stop of numbers": '"stop": [1]',
    "stop token ids of text": '"stop_token_ids": ["a"]',
    "bad_words empty": '"bad_words": [""]',
    "allowed_token_ids empty": '"allowed_token_ids": []',
    "allowed_token_ids out of the vocabulary": '"allowed_token_ids": [100000000]',
    "logit_bias of text": '"logit_bias": {"a": 1}',
    "logit_bias out of the vocabulary": '"logit_bias": {"100000000": 1}',
    "logit_bias negative token": '"logit_bias": {"-1": 1}',
    "logit_bias NaN": '"logit_bias": {"5": NaN}',
    "logit_bias a list": '"logit_bias": [1]',
    "prompt_logprobs far too many": '"prompt_logprobs": 100000',
    "prompt_logprobs negative": '"prompt_logprobs": -7',
    "xargs of an object": '"vllm_xargs": {"a": {"b": 1}}',
    "xargs with river": '"vllm_xargs": {"river": 5}',
    "cache_salt of nothing": '"cache_salt": ""',
    "priority of text": '"priority": "high"',
    "truncate_prompt_tokens negative": '"truncate_prompt_tokens": -7',
    "unknown model": '"model": "another"',
    "model a number": '"model": 7',
}

HEAVY = {
    "empty schema": '{"json": {}}',  # vllm#52011
    "a schema with a huge bound": '{"json": {"type": "integer", "maximum": ' + "9" * 30 + "}}",
    "a huge repetition": '{"regex": "(a{1,1000}){1,1000}"}',  # vllm#17894
    "a regular expression that backtracks": '{"regex": "(a+)+(b+)+c"}',
    "a schema of a billion items": (
        '{"json": {"type": "array", "items": {"type": "integer"}, "minItems": 1000000000}}'
    ),
    "a schema that holds itself": '{"json": {"$ref": "#"}}',
    "a deep schema": '{"json": ' + '{"items": ' * 150 + "{}" + "}" * 150 + "}",
    "a schema of an unknown keyword": '{"json": {"type": "string", "fnord": 1}}',  # vllm#17248
    "a reference to a file": '{"json": {"$ref": "file:///etc/passwd"}}',
}
"""Work for a grammar compiler: answered or refused in time. Where vLLM's compiler gives up with an
error of its own, the status is 500 as in stock vLLM (``tests/reliability/test_stock.py``)."""

RESPONSES_FIELDS = {
    "logit_bias out of the vocabulary": '"logit_bias": {"100000000": 1}',
    "schema of an unknown type": (
        '"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "strang"}}}'
    ),
}
"""What vLLM sees only once it has opened the stream of a response."""

PROMPTS = {
    "empty prompt": '""',  # vllm#10648
    "no prompts": "[]",
    "empty token ids": "[[]]",
    "null": "null",
    "object": '{"a": 1}',
    "negative token id": "[-1]",
    "token id out of the vocabulary": "[1, 100000000]",
    "token id of 30 digits": "[" + "9" * 30 + "]",
    "mixed": '["a", 1]',
    "one of a batch is wrong": "[[1, 2], [-5]]",
    "nested too deep": "[[[1]]]",
    "floats": "[1.5]",
    "over the context": "[" + ", ".join(["5"] * 5000) + "]",
    "text over the context": json.dumps("word " * 20000),
    "a million characters without a space": json.dumps("x" * 1_000_000),
}

MESSAGES = {
    "no messages": "[]",
    "messages null": "null",
    "message without role": '[{"content": "a"}]',
    "role a number": '[{"role": 5, "content": "a"}]',
    "content a number": '[{"role": "user", "content": 5}]',
    "content part unknown": '[{"role": "user", "content": [{"type": "telepathy"}]}]',
    "image for a text model": (
        '[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]'
    ),
    "content of 300 levels": '[{"role": "user", "content": ' + "[" * 300 + "]" * 300 + "}]",
    "deep content": '[{"role": "user", "content": ' + "[" * DEEP + "]" * DEEP + "}]",
    "messages over the context": json.dumps([{"role": "user", "content": "word " * 20000}]),
}

BODIES = {
    "empty body": b"",
    "not JSON": b"{not json",
    "truncated": b'{"model": "river-test", "prompt": "Hi", "max_tok',
    "number": b"5",
    "null": b"null",
    "list": b"[]",
    "text": b'"hello"',
    "bad UTF-8": b'{"model": "\xff\xfe", "prompt": "\xc3("}',
    "bad UTF-8 beside river": b'{"prompt": "\xff", "river": {"threshold": 0.5}}',
    "UTF-16": '{"model": "other", "prompt": "Hi"}'.encode("utf-16"),
    "two documents": b'{"prompt": "a"}{"prompt": "b"}',
    "deep list": b"[" * DEEP + b"]" * DEEP,
    "very deep list": b"[" * 100_000,
    "a number of 5000 digits": b'{"n": ' + b"9" * 5000 + b"}",
    "zeros": b"\0" * 4096,
}

CONTENT_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "a/b/c")


def corpus() -> Iterator[Poison]:
    """Every poison request, once on each endpoint that takes it."""
    for name, value in RIVER_FIELDS.items():
        for path, make in ((CHAT, _chat), (TEXT, _text), (RESPONSES, _responses)):
            yield Poison(f"river: {name} ({path})", path, make(f'"river": {value}'))
    for name, value in PARAMETERS.items():
        yield Poison(f"{name} (chat)", CHAT, _chat(value))
        yield Poison(f"{name} (text)", TEXT, _text(value))
        yield Poison(f"{name} (stream)", TEXT, _text(f'"stream": true, {value}'))
    for name, value in GRAMMARS.items():
        yield Poison(f"response_format: {name}", CHAT, _chat(f'"response_format": {value}'))
    for name, value in STRUCTURED.items():
        yield Poison(f"structured: {name}", TEXT, _text(f'"structured_outputs": {value}'))
    for name, value in HEAVY.items():
        allowed = (200, *range(400, 501))
        body = _text(f'"structured_outputs": {value}')
        yield Poison(f"heavy: {name}", TEXT, body, allowed=allowed)
    for name, value in PROMPTS.items():
        yield Poison(f"prompt: {name}", TEXT, _text('"temperature": 0', value))
        yield Poison(f"prompt: {name} (stream)", TEXT, _text('"stream": true', value))
    for name, value in MESSAGES.items():
        body = f'{{"model": "{NAME}", "messages": {value}, "max_tokens": 2}}'.encode()
        yield Poison(name, CHAT, body)
    for name, raw in BODIES.items():
        for path in (CHAT, TEXT, RESPONSES):
            yield Poison(f"body: {name} ({path})", path, raw)
    good = _text('"temperature": 0')
    for kind in CONTENT_TYPES:
        yield Poison(f"content type {kind}", TEXT, good, {"content-type": kind})
        yield Poison(
            f"content type {kind} with river",
            TEXT,
            _text('"river": {"threshold": 0.5}'),
            {"content-type": kind},
        )
    yield Poison("logprobs over the cap", CHAT, _chat('"logprobs": true, "top_logprobs": 1000'))
    yield Poison(
        "stream_options without stream", TEXT, _text('"stream_options": {"include_usage": true}')
    )
    yield Poison("top_logprobs without logprobs", CHAT, _chat('"top_logprobs": 3'))
    yield Poison("logprobs over the cap (text)", TEXT, _text('"logprobs": 1000'))
    yield Poison("echo of an empty prompt", TEXT, _text('"echo": true', '""'))
    yield Poison("tool that is none", CHAT, _chat('"tools": [{"type": "function"}]'))
    yield Poison("tool choice without tools", CHAT, _chat('"tool_choice": "required"'))
    yield Poison(
        "tool choice of another tool",
        CHAT,
        _chat(
            '"tools": [{"type": "function", "function": {"name": "a", "parameters": {}}}], '
            '"tool_choice": {"type": "function", "function": {"name": "b"}}'
        ),
    )
    yield Poison("previous response unknown", RESPONSES, _responses('"previous_response_id": "x"'))
    yield Poison("background with river", RESPONSES, _responses('"background": true, "river": {}'))
    for name, value in RESPONSES_FIELDS.items():
        yield Poison(f"responses: {name}", RESPONSES, _responses(value))
        streamed = _responses(f'"stream": true, {value}')
        yield Poison(f"responses: {name} (stream)", RESPONSES, streamed)
