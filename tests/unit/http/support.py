"""A small app around one middleware, and River's state without an engine."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np

from river_vllm.config import RiverConfig
from river_vllm.modes.mode import Summary
from river_vllm.request import RiverSettings
from server.http.exchange import RiverExchange
from server.http.state import RiverState
from server.telemetry.progress import Progress

L = 12
DEFAULTS = RiverSettings(True, 0.9, 2)
VERIFIED = RiverSettings(True, 0.9, 1, mode="verified")


class Metrics:
    """Remembers what the HTTP side tells the real metrics."""

    def __init__(self) -> None:
        self.engines: list[int] = []
        self.gauges: dict[str, float] = {}

    def set(self, gauge: str, value: float) -> None:
        self.gauges[gauge] = value

    def count(self, summary: Summary, engine: int) -> None:
        self.engines.append(engine)

    def totals(self) -> dict[str, Any]:
        return {}


def river_state(**changes: Any) -> RiverState:
    values: dict[str, Any] = {
        "model": "tiny",
        "config": RiverConfig(threshold=0.9, min_layers=2, scope="batch"),
        "engine": {"num_layers": L, "kernels": ["torch"]},
        "defaults": DEFAULTS,
        "metrics": Metrics(),
        "progress": Progress(),
        "single_process": True,
    }
    return RiverState(**{**values, **changes})


def exchange(*choices: list[int], trace: bool = False) -> RiverExchange:
    """An exchange whose choices have finished with these signed depths."""
    made = RiverExchange(DEFAULTS, L, trace)
    for index, depths in enumerate(choices):
        made.add(index, np.array(depths, dtype=np.int16))
    return made


def scope(path: str = "/", app_state: Any = None, **changes: Any) -> dict[str, Any]:
    """An ASGI scope of a request to ``path``."""
    base = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [],
        "app": SimpleNamespace(state=app_state or SimpleNamespace()),
    }
    return {**base, **changes}


def fetch(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    """One request to an ASGI app, in an event loop of its own."""

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://river") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


def call(app: Any, request: dict[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run an ASGI app on a scope and what the client sends; returns what the app sends."""
    sent: list[dict[str, Any]] = []
    pending = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(pending)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(request, receive, send))
    return sent


def sse(*payloads: Any) -> bytes:
    """Payloads as vLLM streams them."""
    return b"".join(
        b"data: " + (p if isinstance(p, bytes) else compact(p)) + b"\n\n" for p in payloads
    )


def compact(payload: Any) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def chunk(
    index: int = 0, text: str = "x", finish: str | None = None, **more: Any
) -> dict[str, Any]:
    delta = {"content": text}
    choice = {"index": index, "delta": delta, "finish_reason": finish, "token_ids": None}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **more}


def payloads(data: bytes) -> list[Any]:
    """The JSON of every ``data:`` line but ``[DONE]``."""
    lines = [line[5:] for line in data.split(b"\n") if line.startswith(b"data:")]
    return [json.loads(line) for line in lines if line.strip() != b"[DONE]"]
