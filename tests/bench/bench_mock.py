"""An OpenAI-compatible server of known timing and known failures, in a thread of the test."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any


@dataclass
class Behaviour:
    """What the server does; every ``_every`` counts requests from 1, 0 is never."""

    ttft: float = 0.01
    itl: float = 0.002
    tokens_per_chunk: int = 1
    empty_end: bool = False
    """The last token has no text, as an end-of-sequence token."""
    separate_finish: bool = False
    """``finish_reason`` comes in a chunk of its own, which holds no token."""
    finish_reason: str | None = "length"
    done: bool = True
    usage: bool = True
    chunk_usage: bool = False
    refuse_every: int = 0
    refuse_after: int | None = None
    """Refuse every request after this many."""
    refuse_status: int = 503
    cut_every: int = 0
    """Close in mid-stream."""
    error_every: int = 0
    """Send an error object in mid-stream."""
    hang: bool = False
    linger: float = 0.0
    """Seconds between ``[DONE]`` and the end of the body."""
    content_type: str = "text/event-stream; charset=utf-8"
    newline: str = "\n"
    keep_alive: bool = False
    key: str | None = None
    models: tuple[str, ...] = ("mock-model",)
    river: dict[str, Any] | None = None


@dataclass
class Seen:
    """One request as the server saw it; times of ``perf_counter``, which both sides share."""

    body: dict[str, Any]
    headers: dict[str, str]
    arrived: float
    written: list[float] = field(default_factory=list)
    """When each chunk with a token was written."""
    left: bool = False
    """The client closed the connection before the end."""


class MockServer:
    """Use as a context manager; ``seen`` holds generating requests in order of arrival."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.seen: list[Seen] = []
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._stop = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> MockServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
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
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = head[0].split(" ")[1]
        pairs = (line.split(":", 1) for line in head[1:] if ":" in line)
        headers = {name.lower(): value.strip() for name, value in pairs}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        key = self.behaviour.key
        if key is not None and headers.get("authorization") != f"Bearer {key}":
            return _answer(writer, 401, {"error": "Unauthorized"})
        if path == "/v1/models":
            rows = [{"id": name, "object": "model"} for name in self.behaviour.models]
            return _answer(writer, 200, {"object": "list", "data": rows})
        if path not in ("/v1/chat/completions", "/v1/completions"):
            return _answer(writer, 404, {"error": {"message": f"no route {path}"}})
        seen = Seen(json.loads(raw), headers, perf_counter())
        self.seen.append(seen)
        return await _Answer(self.behaviour, seen, len(self.seen), writer, "chat" in path).send()


def _answer(writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> bool:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    writer.write(head.encode() + b"\r\n\r\n" + data)
    return True


class _Answer:
    def __init__(
        self,
        behaviour: Behaviour,
        seen: Seen,
        number: int,
        writer: asyncio.StreamWriter,
        chat: bool,
    ) -> None:
        self._do = behaviour
        self._seen = seen
        self._number = number
        self._writer = writer
        self._chat = chat
        limit = seen.body.get("max_completion_tokens") or seen.body["max_tokens"]
        self._total: int = limit

    def _hits(self, every: int) -> bool:
        return every > 0 and self._number % every == 0

    async def send(self) -> bool:
        do = self._do
        late = do.refuse_after is not None and self._number > do.refuse_after
        if late or self._hits(do.refuse_every):
            return _answer(self._writer, do.refuse_status, {"error": {"message": "no room"}})
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {do.content_type}\r\n"
        self._writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        try:
            whole = await self._stream()
        except ConnectionError:
            self._seen.left = True
            return False
        if whole:
            await asyncio.sleep(do.linger)
            self._writer.write(b"0\r\n\r\n")
        return whole

    async def _stream(self) -> bool:
        do, half = self._do, self._total // 2
        if do.hang:
            await asyncio.sleep(60)
        await asyncio.sleep(do.ttft)
        if self._chat:
            await self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, 0)
        made = 0
        while made < self._total:
            if made:
                await asyncio.sleep(do.itl)
            if do.keep_alive:
                await self._raw(f": ping{do.newline}{do.newline}")
            made = min(made + do.tokens_per_chunk, self._total)
            await self._token_chunk(made)
            if made >= half and self._hits(do.cut_every):
                return False
            if made >= half and self._hits(do.error_every):
                await self._event({"error": {"message": "engine died", "code": 500}})
                return True
        if do.separate_finish:
            await self._event({"choices": [self._choice("", do.finish_reason)]}, made)
        await self._end(made)
        return True

    async def _token_chunk(self, made: int) -> None:
        do, last = self._do, made == self._total
        text = "" if last and do.empty_end else "wörd "
        reason = do.finish_reason if last and not do.separate_finish else None
        self._seen.written.append(perf_counter())
        await self._event({"choices": [self._choice(text, reason)]}, made)

    def _choice(self, text: str, reason: str | None) -> dict[str, Any]:
        part = {"delta": {"content": text}} if self._chat else {"text": text}
        return {"index": 0, "finish_reason": reason, **part}

    async def _end(self, made: int) -> None:
        do = self._do
        if do.usage or do.river is not None:
            last: dict[str, Any] = {"choices": []}
            if do.usage:
                last["usage"] = self._usage(made)
            if do.river is not None:
                last["river"] = do.river
            await self._event(last)
        if do.done:
            await self._raw(f"data: [DONE]{do.newline}{do.newline}")

    def _usage(self, made: int) -> dict[str, int]:
        return {"prompt_tokens": 7, "completion_tokens": made, "total_tokens": made + 7}

    async def _event(self, body: dict[str, Any], made: int | None = None) -> None:
        if made is not None and self._do.chunk_usage:
            body = body | {"usage": self._usage(made)}
        text = json.dumps(body, ensure_ascii=False)
        await self._raw(f"data: {text}{self._do.newline}{self._do.newline}")

    async def _raw(self, text: str) -> None:
        data = text.encode()
        self._writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self._writer.drain()
