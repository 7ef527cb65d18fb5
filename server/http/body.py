"""Reads a request body and passes it, changed, to the next application."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

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
