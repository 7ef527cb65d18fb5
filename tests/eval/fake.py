"""A small OpenAI-compatible server in threads of the test, with River's totals."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LAYERS = 10
TOKENS = 4
"""Decode tokens of each answer."""


@dataclass
class Seen:
    """A request as it came."""

    path: str
    body: dict[str, Any]
    key: str | None


class FakeServer:
    """Answers what ``respond`` makes of a request's body; use as a context manager.

    A request whose river is enabled leaves after half of the layers, one token of it held.
    """

    def __init__(self, respond: Callable[[dict[str, Any]], str], key: str | None = None) -> None:
        self.respond = respond
        self.key = key
        self.seen: list[Seen] = []
        self.stats = {"num_layers": LAYERS, "tokens": 7, "backbone_layers": 70, "held_tokens": 2}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def bodies(self, **river: Any) -> list[dict[str, Any]]:
        """Of the requests with this river."""
        return [one.body for one in self.seen if one.body.get("river", {}) == river]

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _count(self, body: dict[str, Any]) -> None:
        leaves = body.get("river", {}).get("enabled", True)
        self.stats["tokens"] += TOKENS
        self.stats["backbone_layers"] += TOKENS * (LAYERS // 2 if leaves else LAYERS)
        self.stats["held_tokens"] += leaves

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def answer(self, status: int, content: Any) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def may(self) -> bool:
                return fake.key is None or self.headers["authorization"] == f"Bearer {fake.key}"

            def do_GET(self) -> None:
                pages = {"/v1/models": {"data": [{"id": "fake"}]}, "/river/stats": fake.stats}
                page = pages.get(self.path)
                self.answer(200 if page and self.may() else 401, page or {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                fake.seen.append(Seen(self.path, body, self.headers["authorization"]))
                try:
                    assert self.may() and len(body["stop"]) <= 4
                    text = fake.respond(body)
                except Exception as error:
                    self.answer(400, {"error": {"message": repr(error)}})
                    return
                fake._count(body)
                message = {"message": {"role": "assistant", "content": text}}
                part = message if "chat" in self.path else {"text": text}
                self.answer(200, {"choices": [{"index": 0, "finish_reason": "stop", **part}]})

        return Handler
