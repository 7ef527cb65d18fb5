"""An OpenAI-compatible server in threads of the test, which answers what the test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Respond = Callable[[dict[str, Any]], "Reply"]


@dataclass
class Reply:
    """One answer."""

    text: str | None = "#### 1"
    status: int = 200
    finish_reason: str | None = "stop"
    token_ids: list[int] | None = field(default_factory=lambda: [7, 8, 9])
    tokens: int = 3
    river: dict[str, Any] | None = None
    raw: bytes | None = None
    """The whole body, instead of an OpenAI object."""
    delay: float = 0.0


@dataclass
class Seen:
    """A request as it came."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]


MOST_STOPS = 4
"""More stop texts are refused by the API."""


class MockServer:
    """Use as a context manager; ``seen`` holds generating requests in order of arrival."""

    def __init__(self, respond: Respond, key: str | None = None, river: Any = None) -> None:
        self.respond = respond
        self.key = key
        self.pages = {"/v1/models": {"data": [{"id": "mock-model"}]}}
        if river is not None:
            self.pages |= {"/river": river, "/version": {"version": "9.9"}}
        self.seen: list[Seen] = []
        self.most_in_flight = self.in_flight = 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> MockServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        mock = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                page = mock.pages.get(self.path)
                _send(self, 200 if page else 404, json.dumps(page or {"error": "none"}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if mock.key and self.headers["authorization"] != f"Bearer {mock.key}":
                    _send(self, 401, b'{"error": "Unauthorized"}')
                    return
                with mock.lock:
                    mock.seen.append(Seen(self.path, body, dict(self.headers)))
                    mock.in_flight += 1
                    mock.most_in_flight = max(mock.most_in_flight, mock.in_flight)
                try:
                    assert len(body.get("stop", ())) <= MOST_STOPS
                    reply = mock.respond(body)
                    time.sleep(reply.delay)
                finally:
                    with mock.lock:
                        mock.in_flight -= 1
                _send(self, reply.status, _content(reply, "chat" in self.path))

        return Handler


def _content(reply: Reply, chat: bool) -> bytes:
    if reply.raw is not None:
        return reply.raw
    if reply.status != 200:
        return json.dumps({"error": {"message": reply.text}}).encode()
    part = (
        {"message": {"role": "assistant", "content": reply.text}} if chat else {"text": reply.text}
    )
    choice = {"index": 0, "finish_reason": reply.finish_reason, **part}
    if reply.token_ids is not None:
        choice["token_ids"] = reply.token_ids
    body: dict[str, Any] = {"choices": [choice]}
    body["usage"] = {"prompt_tokens": 5, "completion_tokens": reply.tokens}
    if reply.river is not None:
        body["river"] = reply.river
    return json.dumps(body).encode()


def _send(handler: BaseHTTPRequestHandler, status: int, content: bytes) -> None:
    try:
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
    except ConnectionError:  # the client has left
        handler.close_connection = True
