"""The ``send`` of a generating request: adds the report and corrects the status of refusals."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from server.http.body import with_length
from server.http.exchange import RiverExchange
from server.http.report import StreamReport, add_to_json

_ERROR = b'data: {"error":'
_OPENINGS = (b"event: response.created\n", b"event: response.in_progress\n")
"""The Responses API's first events: vLLM sends them before it asks the engine."""
_STARTED = "Caught handled exception, but response already started."
"""Starlette's message for an exception that comes too late for its handler."""


class Reporter:
    """Adds the report to a successful response.

    vLLM starts a stream before its engine has checked the request. A refusal is then the first
    event of a stream with status 200; in the Responses API it is an exception after the opening
    events. The start is held until then, so a refusal becomes the same plain error response as
    without ``stream``.
    """

    def __init__(self, exchange: RiverExchange, scope: Scope, receive: Receive, send: Send) -> None:
        self._exchange = exchange
        self._scope, self._receive, self._send = scope, receive, send
        self._start: Message | None = None
        self._opening = b""
        self._stream: StreamReport | None = None
        self._parts: list[bytes] | None = None
        self._refused = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif message["type"] != "http.response.body":
            await self._send(message)
        elif self._stream is not None:
            await self._send_events(self._stream, message)
        elif self._parts is not None:
            await self._send_json(self._parts, message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        kind = dict(message["headers"]).get(b"content-type", b"")
        if message["status"] != HTTPStatus.OK:
            await self._send(message)
        elif kind.startswith(b"text/event-stream"):
            self._start, self._stream = message, StreamReport(self._exchange)
        elif kind.startswith(b"application/json"):
            self._start, self._parts = message, []
        else:
            await self._send(message)

    async def _send_events(self, stream: StreamReport, message: Message) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._refused:
            return
        if self._start is not None:
            if more and (not body or body.startswith(_OPENINGS)):
                self._opening += body
                return
            start, self._start = self._start, None
            if (error := _error(body)) is not None:
                self._refused = True
                response = JSONResponse({"error": error}, status_code=error["code"])
                await response(self._scope, self._receive, self._send)
                return
            await self._send(start)
            body = self._opening + body
        data = stream.feed(body)
        if not more:
            data += stream.close()
        if data or not more:
            await self._send({**message, "body": data})

    async def _send_json(self, parts: list[bytes], message: Message) -> None:
        assert self._start is not None
        parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = add_to_json(b"".join(parts), self._exchange)
        await self._send(with_length(self._start, len(body)))
        await self._send({**message, "body": body})

    async def refuse(self, error: Exception) -> None:
        """Answer an error that came before the response started, as without ``stream``.

        Raises:
            Exception: ``error``, if the response has started or no handler answers it.
        """
        cause = _kept_back(error)
        if cause is None or self._stream is None or self._start is None:
            raise error
        handlers = self._scope["app"].exception_handlers
        handler = next(handlers[kind] for kind in type(cause).__mro__ if kind in handlers)
        response = await handler(Request(self._scope), cause)
        await response(self._scope, self._receive, self._send)


def _kept_back(error: Exception) -> Exception | None:
    """The cause of ``error``, if its handler in Starlette could no longer answer."""
    cause = error.__cause__
    if str(error) != _STARTED or not isinstance(cause, Exception):
        return None
    # A ValidationError is vLLM's failure to write an engine's error as a Responses API event, not a
    # fault of the request.
    return None if isinstance(cause, ValidationError) else cause


def _error(body: bytes) -> dict[str, Any] | None:
    """The error object of a stream's first event; None unless it has an HTTP status."""
    if not body.startswith(_ERROR) and not body.startswith(_ERROR.replace(b'":', b'": ')):
        return None
    try:
        error = json.loads(body.split(b"\n\n", 1)[0].removeprefix(b"data:"))["error"]
        return error if 400 <= error["code"] <= 599 else None
    except (ValueError, KeyError, TypeError):
        return None
