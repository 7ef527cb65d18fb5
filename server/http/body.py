"""Reads a request body, refuses values that an engine cannot take, and passes the body on.

Python's JSON reader accepts ``NaN`` and ``Infinity``, reads ``1e999`` as infinity, and has integers
of any size. vLLM checks only some fields; other values reach the sampler. Integers above 64 bits
fail with status 500 in the transport to the engine (``top_k`` in vLLM 0.32). Lists and objects may
be nested deeper than later readers can follow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from river_vllm.errors import shortened
from server.http.errors import FieldError

MAX_BODY_BYTES = 16 << 20
"""As ``client_max_body_size`` in ``deploy/nginx``; a body takes many times its length in memory."""


class BodyTooLongError(HTTPException):
    """Status 413: a request body is longer than ``MAX_BODY_BYTES``."""

    def __init__(self) -> None:
        super().__init__(413, f"body: must have at most {MAX_BODY_BYTES} bytes")


def bounded(scope: Scope, receive: Receive) -> Receive:
    """A ``receive`` that raises ``BodyTooLongError`` for a body above ``MAX_BODY_BYTES``."""
    announced = Headers(scope=scope).get("content-length", "")
    too_long = announced.isdecimal() and int(announced) > MAX_BODY_BYTES
    count = 0

    async def received() -> Message:
        nonlocal count
        if too_long:
            raise BodyTooLongError
        message = await receive()
        count += len(message.get("body", b""))
        if count > MAX_BODY_BYTES:
            raise BodyTooLongError
        return message

    return received


async def read_body(receive: Receive) -> bytes | None:
    """The whole request body; None if the client disconnected before its end."""
    # Not a list of parts: a client may send two bytes at a time.
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that yields ``body`` once, then the client's later messages.

    vLLM learns of a disconnect from them.
    """
    left = [body]

    async def replayed() -> Message:
        if not left:
            return await receive()
        return {"type": "http.request", "body": left.pop(), "more_body": False}

    return replayed


def with_length(scope: Scope, length: int) -> Scope:
    """``scope`` with the content length of a changed body."""
    headers = [(k, v) for k, v in scope["headers"] if k.lower() != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


MAX_DEPTH = 200
"""Levels of lists and objects; pydantic's JSON reader has the same bound."""
_SUSPICIOUS = re.compile(rb"NaN|Infinity|[eE]\+?[0-9]{3}|[0-9]{19}")
_LOWEST, _HIGHEST = -(2**63), 2**64 - 1
_PARAMETER_DEPTH = 2
"""Integers nested this deep are data, such as a schema's bounds, and stay JSON text."""
_PASSED_ON = frozenset(("vllm_xargs", "kv_transfer_params", "ec_transfer_params"))
"""Objects that vLLM passes to the engine unchanged."""


def refuse_impossible_values(raw: bytes, body: dict[str, Any]) -> None:
    """Check every value of a request body, if its text holds anything unusual.

    One pass; its only memory is the path to the current value.

    Args:
        raw: the text of ``body``.

    Raises:
        FieldError: names the field.
    """
    # Python's reader also takes UTF-16 and UTF-32, where these characters have NUL bytes; UTF-8
    # JSON has none.
    plain = b"\0" not in raw and not _SUSPICIOUS.search(raw)
    if plain and raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH:
        return
    path: list[str | int] = []
    open_items: list[Iterator[tuple[str | int, Any]]] = [iter(body.items())]
    while open_items:
        for key, value in open_items[-1]:
            if isinstance(value, dict | list):
                path.append(key)
                if len(path) == MAX_DEPTH:
                    raise FieldError(
                        _name(path), f"'{_name(path)}': more than {MAX_DEPTH} levels of nesting"
                    )
                items = value.items() if isinstance(value, dict) else enumerate(value)
                open_items.append(iter(items))
                break
            if isinstance(value, int | float):
                _check_number(path, key, value)
        else:
            open_items.pop()
            if path:
                path.pop()


def _check_number(path: list[str | int], key: str | int, value: float) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            name = _name([*path, key])
            raise FieldError(name, f"'{name}' = {value}: must be a finite number")
    elif not _LOWEST <= value <= _HIGHEST and (
        len(path) < _PARAMETER_DEPTH or path[0] in _PASSED_ON
    ):
        name = _name([*path, key])
        raise FieldError(name, f"'{name}': an integer must fit into 64 bits")


def _name(path: list[str | int]) -> str:
    return shortened(".".join(map(str, path)))
