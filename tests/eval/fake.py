"""A server of the test's own answers, with River's totals."""

from __future__ import annotations

from asyncio import StreamWriter
from collections.abc import Callable
from typing import Any

from tests.support.mock_openai import Behaviour, MockServer, answer

LAYERS = 10
TOKENS = 4
"""Decode tokens of each answer."""


class FakeServer(MockServer):
    """Answers what ``respond`` makes of a request's body.

    A request whose river is enabled leaves after half of the layers, one token of it held.
    """

    def __init__(self, respond: Callable[[dict[str, Any]], str], key: str | None = None) -> None:
        super().__init__(Behaviour(key=key, models=("fake",)))
        self.respond = respond
        self.paths: set[str] = set()
        self.stats = {"num_layers": LAYERS, "tokens": 7, "backbone_layers": 70, "held_tokens": 2}

    def asked_with(self, **river: Any) -> list[dict[str, Any]]:
        """Bodies with this river."""
        return [body for body in self.bodies if body.get("river", {}) == river]

    def page(self, path: str) -> Any:
        return self.stats if path == "/river/stats" else super().page(path)

    async def generate(self, writer: StreamWriter, path: str, body: Any) -> bool:
        self.paths.add(path)
        try:
            assert len(body["stop"]) <= 4
            text = self.respond(body)
        except Exception as error:
            return answer(writer, 400, {"error": {"message": repr(error)}})
        leaves = body.get("river", {}).get("enabled", True)
        self.stats["tokens"] += TOKENS
        self.stats["backbone_layers"] += TOKENS * (LAYERS // 2 if leaves else LAYERS)
        self.stats["held_tokens"] += leaves
        message = {"message": {"role": "assistant", "content": text}}
        part = message if "chat" in path else {"text": text}
        choice = {"index": 0, "finish_reason": "stop", **part}
        return answer(writer, 200, {"choices": [choice]})
