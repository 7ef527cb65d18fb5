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


def _nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def _table(text: str) -> list[str]:
    """Values with a bar between them; ``LONG`` is a number of 30 digits."""
    values = (value.strip() for line in text.splitlines() for value in line.split(" | "))
    return [value.replace("LONG", "9" * 30) for value in values if value]


RIVER_FIELDS = [
    *_table(r"""
        {"threshold": NaN} | {"threshold": Infinity} | {"threshold": -Infinity}
        {"threshold": 1e999} | {"threshold": -1e999} | {"threshold": 1.0000000000000002}
        {"min_layers": 9223372036854775808} | {"min_layers": -1} | {"min_layers": 2.0}
        {"min_layers": true} | {"threshold": "0.9"} | {"threshold": "τ = ½ \u0000 \ud800"}
        {"\ud800τ": 1} | {"": 1} | {"__proto__": {"threshold": 1}} | {"enabled": null}
        {"threshold": 0.5, "threshold": 7} | {"threshold": 0.5}, "river": {"threshold": 7}
        null | 1 | [{"threshold": 0.9}] | "off"
    """),
    *('{"threshold": ' + "9" * digits + "}" for digits in (400, 5000)),
    '{"min_layers": ' + "9" * 400 + "}",
    '{"threshold": ' + '{"a": ' * DEEP + "1" + "}" * DEEP + "}",
    # The second is not too deep to parse.
    *('{"threshold": ' + _nested(levels) + "}" for levels in (DEEP, 400)),
    "{" + ", ".join(f'"k{i}": {i}' for i in range(5000)) + "}",
]

GRAMMARS = _table("""
    {"type": "json_schema"} | {"type": "json_schema", "json_schema": {"name": "x", "schema": 5}}
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strang"}}}
    {"type": "jsonn"}
""")

# vllm#17313, vllm#43920, vllm PR #45346, and others
STRUCTURED = _table("""
    {"regex": "[a-"} | {"grammar": "root ::= ((("} | {"json": ""}
    {"json_object": false} | {"regex": "a", "choice": ["b"]} | {} | {"choice": []}
    {"structural_tag": "no"}
""")

PARAMETERS = _table("""
    "n": 0 | "n": 1000000000 | "n": LONG | "temperature": NaN | "temperature": Infinity
    "temperature": 1e999 | "temperature": -1 | "top_p": NaN | "top_p": 1.5 | "top_k": -7
    "top_k": LONG | "min_p": NaN | "presence_penalty": NaN | "repetition_penalty": 0
    "repetition_penalty": NaN | "min_tokens": 50 | "max_tokens": LONG | "max_tokens": -5
    "max_tokens": 100000 | "seed": LONG | "stop": [""] | "stop": [1] | "stop_token_ids": ["a"]
    "bad_words": [""] | "allowed_token_ids": [] | "allowed_token_ids": [100000000]
    "logit_bias": {"a": 1} | "logit_bias": {"100000000": 1} | "logit_bias": {"-1": 1}
    "logit_bias": {"5": NaN} | "logit_bias": [1] | "prompt_logprobs": 100000
    "prompt_logprobs": -7 | "vllm_xargs": {"a": {"b": 1}} | "vllm_xargs": {"river": 5}
    "cache_salt": "" | "priority": "high" | "truncate_prompt_tokens": -7
    "model": "another" | "model": 7
""")

# Among them vllm#52011, vllm#17894 and vllm#17248: an empty schema, a huge repetition, an unknown
# keyword.
HEAVY = [
    *_table("""
        {"json": {}} | {"json": {"type": "integer", "maximum": LONG}}
        {"regex": "(a{1,1000}){1,1000}"} | {"regex": "(a+)+(b+)+c"}
        {"json": {"type": "array", "items": {"type": "integer"}, "minItems": 1000000000}}
        {"json": {"$ref": "#"}} | {"json": {"type": "string", "fnord": 1}}
        {"json": {"$ref": "file:///etc/passwd"}}
    """),
    '{"json": ' + '{"items": ' * 150 + "{}" + "}" * 150 + "}",
]
"""Work for a grammar compiler: answered or refused in time. Where vLLM's compiler gives up with an
error of its own, the status is 500 as in stock vLLM (``tests/reliability/test_stock.py``)."""

RESPONSES_FIELDS = _table("""
    "logit_bias": {"100000000": 1}
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "strang"}}}
""")
"""What vLLM sees only once it has opened the stream of a response."""

# The empty prompt is vllm#10648; the last ones are over the context.
PROMPTS = [
    *_table("""
        "" | [] | [[]] | null | {"a": 1} | [-1] | [1, 100000000] | [LONG] | ["a", 1]
        [[1, 2], [-5]] | [[[1]]] | [1.5]
    """),
    "[" + ", ".join(["5"] * 5000) + "]",
    *(json.dumps(text) for text in ("word " * 20000, "x" * 1_000_000)),
]

MESSAGES = [
    *_table("""
        [] | null | [{"content": "a"}] | [{"role": 5, "content": "a"}]
        [{"role": "user", "content": 5}] | [{"role": "user", "content": [{"type": "telepathy"}]}]
    """),
    '[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]',
    *('[{"role": "user", "content": ' + _nested(levels) + "}]" for levels in (300, DEEP)),
    json.dumps([{"role": "user", "content": "word " * 20000}]),
]

BODIES = [
    *(b"", b"{not json", b'{"model": "river-test", "prompt": "Hi", "max_tok', b"5", b"null", b"[]"),
    *(b'"hello"', b'{"model": "\xff\xfe", "prompt": "\xc3("}', b"\0" * 4096),
    *(b'{"prompt": "\xff", "river": {"threshold": 0.5}}', b'{"prompt": "a"}{"prompt": "b"}'),
    '{"model": "other", "prompt": "Hi"}'.encode("utf-16"),
    *(_nested(DEEP).encode(), b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}"),
]

CONTENT_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "a/b/c")

TOOLS = """"tools": [{"type": "function", "function": {"name": "a", "parameters": {}}}],
"tool_choice": {"type": "function", "function": {"name": "b"}}"""

SINGLE = [
    *((CHAT, _chat(extra)) for extra in ('"logprobs": true, "top_logprobs": 1000', TOOLS)),
    *((CHAT, _chat(f'"{extra}')) for extra in ('top_logprobs": 3', 'tool_choice": "required"')),
    (CHAT, _chat('"tools": [{"type": "function"}]')),
    *(
        (TEXT, _text('"stream_options": {"include_usage": true}')),
        (TEXT, _text('"logprobs": 1000')),
    ),
    (TEXT, _text('"echo": true', '""')),
    (RESPONSES, _responses('"previous_response_id": "x"')),
    (RESPONSES, _responses('"background": true, "river": {}')),
]


def corpus() -> Iterator[Poison]:
    """Every poison request, once on each endpoint that takes it."""

    def poison(kind: str, path: str, body: bytes, **options: tuple[int, ...]) -> Poison:
        return Poison(f"{kind} {path} {len(body)} {body[:200]!r}", path, body, **options)

    for value in RIVER_FIELDS:
        for path, make in ((CHAT, _chat), (TEXT, _text), (RESPONSES, _responses)):
            yield poison("river", path, make(f'"river": {value}'))
    for value in PARAMETERS:
        yield poison("parameter", CHAT, _chat(value))
        for stream in ("", '"stream": true, '):
            yield poison("parameter", TEXT, _text(stream + value))
    for value in GRAMMARS:
        yield poison("response_format", CHAT, _chat(f'"response_format": {value}'))
    for value in STRUCTURED:
        yield poison("structured", TEXT, _text(f'"structured_outputs": {value}'))
    for value in HEAVY:
        allowed = (200, *range(400, 501))
        yield poison("heavy", TEXT, _text(f'"structured_outputs": {value}'), allowed=allowed)
    for value in PROMPTS:
        for extra in ('"temperature": 0', '"stream": true'):
            yield poison("prompt", TEXT, _text(extra, value))
    for value in MESSAGES:
        body = f'{{"model": "{NAME}", "messages": {value}, "max_tokens": 2}}'.encode()
        yield poison("messages", CHAT, body)
    for raw in BODIES:
        for path in (CHAT, TEXT, RESPONSES):
            yield poison("body", path, raw)
    for kind in CONTENT_TYPES:
        for extra in ('"temperature": 0', '"river": {"threshold": 0.5}'):
            yield Poison(f"{kind} with {extra}", TEXT, _text(extra), {"content-type": kind})
    for path, body in SINGLE:
        yield poison("single", path, body)
    for value in RESPONSES_FIELDS:
        for stream in ("", '"stream": true, '):
            yield poison("responses", RESPONSES, _responses(stream + value))
