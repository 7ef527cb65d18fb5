"""An OpenAI-compatible server of known timing, failures or answers, in a thread of the test."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass
from typing import Any


@dataclass
class Behaviour:
    """What the server does; every ``_every`` counts requests from 1, 0 is never."""

    ttft: float = 0.0
    itl: float = 0.0
    tokens_per_chunk: int = 1
    text: str = "wörd\u2028 "
    """Of a chunk; U+2028 ends no line of an event stream."""
    separate_finish: bool = False
    """``finish_reason`` comes in a chunk of its own, which holds no token."""
    finish_reason: str | None = "length"
    done: bool = True
    usage: bool = True
    refuse_every: int = 0
    cut_every: int = 0
    """Close in mid-stream."""
    error_every: int = 0
    """Send an error object in mid-stream."""
    nonsense: bool = False
    """Send an event that is no JSON."""
    hang: bool = False
    content_type: str = "text/event-stream; charset=utf-8"
    newline: str = "\n"
    key: str | None = None
    models: tuple[str, ...] = ("mock-model",)
    river: dict[str, Any] | None = None


class MockServer:
    """Use as a context manager; ``bodies`` holds generating requests in order of arrival."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.bodies: list[dict[str, Any]] = []
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),))
        self._stop = asyncio.Event()
        self.url = ""

    def __enter__(self) -> MockServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    async def _main(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection stays open."""
        do = self.behaviour
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = head[0].split(" ")[1]
        pairs = (line.split(":", 1) for line in head[1:] if ":" in line)
        headers = {name.lower(): value.strip() for name, value in pairs}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        if do.key is not None and headers.get("authorization") != f"Bearer {do.key}":
            return answer(writer, 401, {"error": "Unauthorized"})
        if head[0].startswith("GET"):
            page = self.page(path)
            return answer(writer, 200 if page else 404, page or {})
        self.bodies.append(json.loads(raw))
        return await self.generate(writer, path, self.bodies[-1])

    def page(self, path: str) -> Any:
        """What a ``GET`` brings."""
        models = [{"id": name} for name in self.behaviour.models]
        return {"data": models} if path == "/v1/models" else None

    async def generate(self, writer: asyncio.StreamWriter, path: str, body: Any) -> bool:
        do = self.behaviour
        number = len(self.bodies)
        if do.refuse_every and number % do.refuse_every == 0:
            return answer(writer, 503, {"error": {"message": "no room"}})
        head_ = f"HTTP/1.1 200 OK\r\ncontent-type: {do.content_type}\r\n"
        writer.write(f"{head_}transfer-encoding: chunked\r\n\r\n".encode())
        async for event in _events(do, body, number):
            if event is None:
                return False
            await _chunk(writer, event.replace("\n", do.newline))
        writer.write(b"0\r\n\r\n")
        return True


def answer(writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> bool:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    writer.write(head.encode() + b"\r\n\r\n" + data)
    return True


async def _chunk(writer: asyncio.StreamWriter, text: str) -> None:
    data = text.encode()
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


async def _events(do: Behaviour, body: dict[str, Any], number: int) -> Any:
    """The events of one answer; None cuts it off."""
    total, chat = body["max_tokens"], "messages" in body

    def choice(text: str, reason: str | None) -> str:
        part = {"delta": {"content": text}} if chat else {"text": text}
        return _event({"choices": [{"index": 0, "finish_reason": reason, **part}]})

    await asyncio.sleep(60 if do.hang else do.ttft)
    yield ": keep-alive\n\n"
    if chat:
        yield _event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    for made in range(do.tokens_per_chunk, total + do.tokens_per_chunk, do.tokens_per_chunk):
        if made > do.tokens_per_chunk:
            await asyncio.sleep(do.itl)
        last = made >= total and not do.separate_finish
        yield choice(do.text, do.finish_reason if last else None)
        if do.cut_every and number % do.cut_every == 0:
            yield None
        if do.error_every and number % do.error_every == 0:
            yield _event({"error": {"message": "engine died", "code": 500}})
        if do.nonsense:
            yield "data: {\n\n"
    if do.separate_finish:
        yield choice("", do.finish_reason)
    end: dict[str, Any] = {"choices": []}
    if do.usage:
        end["usage"] = {"prompt_tokens": 7, "completion_tokens": total, "total_tokens": total + 7}
    yield _event(end | ({"river": do.river} if do.river else {}))
    if do.done:
        yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
