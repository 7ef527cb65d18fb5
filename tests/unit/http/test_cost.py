"""What a body costs before vLLM sees it: memory and work in proportion to its length, no more.

Memory is what ``tracemalloc`` has seen at most, work the lines of ``server/http`` that were run, so
a busy machine changes neither.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

import server.http
from server.http.body import MAX_BODY_BYTES, MAX_DEPTH, read_body
from server.http.middleware import RiverMiddleware
from tests.unit.http.support import river_state, scope

SMALL = 64 << 10
NGINX = Path(__file__).parents[3] / "deploy/nginx/nginx.conf"
BYTES_PER_BYTE = 40
"""Python's own JSON reader takes up to 30: an empty list is three bytes there and 72 here."""
DEEP = MAX_DEPTH - 2


def _list(items: bytes, size: int) -> bytes:
    return b"[" + items * ((size - len(items)) // len(items)) + items.rstrip(b",") + b"]"


SHAPES: dict[str, Callable[[int], bytes]] = {
    "numbers far inside, and the word NaN": lambda size: (
        b'{"messages": "NaN", "a": ' + b"[" * DEEP + _list(b"0,", size) + b"]" * DEEP + b"}"
    ),
    "deeper than allowed": lambda size: (
        b'{"messages": "NaN", "a": ' + b"[" * 880 + _list(b"0,", size) + b"]" * 880 + b"}"
    ),
    "numbers under a long name": lambda size: (
        b'{"a": NaN, "' + b"k" * (size // 2) + b'": ' + _list(b"0,", size // 2) + b"}"
    ),
    "empty lists": lambda size: b'{"river": {}, "a": ' + _list(b"[],", size) + b"}",
    "names in the field": lambda size: b'{"river": {' + _names(size) + b"}}",
    "a list in the field": lambda size: b'{"river": {"threshold": ' + _list(b"[],", size) + b"}}",
    "text of four bytes a letter": lambda size: (
        b'{"river": {}, "m": "' + "😀".encode() * (size // 4) + b'"}'
    ),
    "digits that look like too many": lambda size: b'{"m": "' + b"9" * size + b'"}',
}


def _names(size: int) -> bytes:
    return b",".join(b'"%07d":0' % number for number in range(size // 12))


async def _vllm(scope: Any, receive: Any, send: Any) -> None:
    """The application behind: takes the body and answers nothing."""
    await receive()


def _post(body: bytes) -> None:
    request = scope("/v1/chat/completions", app_state=SimpleNamespace(river=river_state()))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        pass

    asyncio.run(RiverMiddleware(_vllm)(request, receive, send))


def _peak_bytes(work: Callable[[], object]) -> int:
    _post(b'{"river": {"threshold": "no"}, "m": NaN}')  # what is made once is no cost of a body
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _lines(work: Callable[[], object]) -> int:
    """Lines of ``server/http`` that ``work`` runs."""
    folder = str(Path(server.http.__file__).parent)
    count = 0

    def in_frame(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return in_frame

    def on_call(frame: FrameType, event: str, _: Any) -> Any:
        return in_frame if frame.f_code.co_filename.startswith(folder) else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("shape", SHAPES)
def test_memory_and_work_grow_with_the_body_and_no_faster(shape: str) -> None:
    small, large = (SHAPES[shape](size) for size in (SMALL, 4 * SMALL))
    of_small, of_large = (_peak_bytes(lambda body=body: _post(body)) for body in (small, large))
    assert of_large <= BYTES_PER_BYTE * len(large)
    assert of_large <= 5 * of_small + (16 << 10)
    of_small, of_large = (_lines(lambda body=body: _post(body)) for body in (small, large))
    assert of_large <= min(5 * of_small, 6 * len(large))


def test_nginx_lets_no_longer_body_through_than_is_read() -> None:
    found = re.search(r"client_max_body_size (\d+)m;", NGINX.read_text())
    assert found is not None
    assert int(found[1]) << 20 == MAX_BODY_BYTES


def test_a_body_that_comes_two_bytes_at_a_time() -> None:
    def read(size: int) -> None:
        parts = ((b"%02d" % (i % 100), i + 1 < size // 2) for i in range(size // 2))

        async def receive() -> dict[str, Any]:
            body, more = next(parts)
            return {"type": "http.request", "body": body, "more_body": more}

        asyncio.run(read_body(receive))

    size = 4 * SMALL
    assert _peak_bytes(lambda: read(size)) <= 4 * size + (64 << 10)


def test_a_body_is_let_go_before_the_answer() -> None:
    """An answer may take minutes; what vLLM has read is vLLM's to keep."""
    body = b'{"river": {}, "a": ' + _list(b"[],", 4 * SMALL) + b"}"
    left: list[int] = []

    async def vllm(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        left.append(tracemalloc.get_traced_memory()[0])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    request = scope("/v1/chat/completions", app_state=SimpleNamespace(river=river_state()))
    tracemalloc.start()
    try:
        asyncio.run(RiverMiddleware(vllm)(request, receive, None))  # type: ignore[arg-type]
    finally:
        tracemalloc.stop()
    assert left[0] < len(body)
