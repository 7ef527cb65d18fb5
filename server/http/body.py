"""Reading a request body and giving it back, changed, to the application behind."""

from __future__ import annotations

from starlette.types import Message, Receive, Scope


async def read_body(receive: Receive) -> bytes | None:
    """The whole request body; None where the client left before sending it."""
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
    """A ``receive`` that yields ``body`` once and then whatever the client does next.

    The rest has to be passed through: vLLM learns of a disconnect from it.
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
