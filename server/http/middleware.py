"""ASGI middleware: the ``river`` field in, the ``river`` report out."""

from __future__ import annotations

import json
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.body import read_body, replay, with_length
from server.http.errors import FieldError, error_response
from server.http.exchange import RiverExchange, current_exchange
from server.http.field import FIELD, GENERATING, OTHERS, take_exchange
from server.http.report import StreamReport, add_to_json

_PATHS = frozenset(GENERATING + OTHERS)


class RiverMiddleware:
    """Sits inside vLLM's own middlewares, before its routes; streams pass event by event."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path not in _PATHS:
            await self.app(scope, receive, send)
            return
        await self._generate(path, scope, receive, send)

    async def _generate(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_body(receive)
        if raw is None:
            return
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None  # vLLM answers what is wrong with it
        if not isinstance(body, dict):
            await self.app(scope, replay(raw, receive), send)
            return
        state = getattr(scope["app"].state, FIELD, None)
        given = FIELD in body
        try:
            if state is None and given:
                raise FieldError(FIELD, f"'{FIELD}': this server's model has no river")
            exchange = None if state is None else take_exchange(path, body, state)
        except FieldError as error:
            await error_response(str(error), HTTPStatus.BAD_REQUEST, error.param)(
                scope, receive, send
            )
            return
        if given:
            raw = json.dumps(body).encode()
            scope = with_length(scope, len(raw))
        receive = replay(raw, receive)
        if exchange is None:
            await self.app(scope, receive, send)
            return
        token = current_exchange.set(exchange)
        try:
            await self.app(scope, receive, _Reporter(exchange, send))
        finally:
            current_exchange.reset(token)


class _Reporter:
    """A ``send`` that adds the report to a successful response."""

    def __init__(self, exchange: RiverExchange, send: Send) -> None:
        self._exchange = exchange
        self._send = send
        self._stream: StreamReport | None = None
        self._start: Message | None = None
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] != "http.response.body":
            await self._send(message)
        elif self._stream is not None:
            await self._send_events(message)
        elif self._start is not None:
            await self._send_json(message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        kind = dict(message["headers"]).get(b"content-type", b"")
        if message["status"] != HTTPStatus.OK:
            await self._send(message)
        elif kind.startswith(b"text/event-stream"):
            self._stream = StreamReport(self._exchange)
            await self._send(message)
        elif kind.startswith(b"application/json"):
            self._start = message
        else:
            await self._send(message)

    async def _send_events(self, message: Message) -> None:
        assert self._stream is not None
        more = message.get("more_body", False)
        data = self._stream.feed(message.get("body", b""))
        if not more:
            data += self._stream.close()
        if data or not more:
            await self._send({**message, "body": data})

    async def _send_json(self, message: Message) -> None:
        assert self._start is not None
        self._parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = add_to_json(b"".join(self._parts), self._exchange)
        await self._send(with_length(self._start, len(body)))
        await self._send({**message, "body": body})
