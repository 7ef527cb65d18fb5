"""Reading a body and giving it back."""

from __future__ import annotations

import asyncio
from typing import Any

from server.http.body import read_body, replay, with_length


def receiver(*messages: dict[str, Any]) -> Any:
    pending = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(pending)

    return receive


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_parts_are_joined() -> None:
    receive = receiver(part(b"ab", True), part(b"", True), {"type": "http.request", "body": b"c"})
    assert asyncio.run(read_body(receive)) == b"abc"


def test_an_empty_body_is_not_a_client_that_left() -> None:
    assert asyncio.run(read_body(receiver({"type": "http.request"}))) == b""


def test_a_client_that_left_in_mid_body() -> None:
    receive = receiver(part(b"ab", True), {"type": "http.disconnect"})
    assert asyncio.run(read_body(receive)) is None


def test_the_body_is_replayed_once_and_the_disconnect_comes_through() -> None:
    async def run() -> list[dict[str, Any]]:
        receive = replay(b"new", receiver({"type": "http.disconnect"}))
        return [await receive(), await receive()]

    assert asyncio.run(run()) == [part(b"new", False), {"type": "http.disconnect"}]


def test_the_length_is_replaced_and_nothing_else() -> None:
    scope = {"path": "/", "headers": [(b"a", b"1"), (b"Content-Length", b"9"), (b"b", b"2")]}
    changed = with_length(scope, 4)
    assert changed["headers"] == [(b"a", b"1"), (b"b", b"2"), (b"content-length", b"4")]
    assert changed["path"] == "/"
    assert scope["headers"][1] == (b"Content-Length", b"9")
