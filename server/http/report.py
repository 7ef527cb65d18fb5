"""The ``river`` report in a finished response or the last chunk of a stream; status of refusals."""

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

DONE = b"data: [DONE]"
_FINISHED_RESPONSES = (b"event: response.completed", b"event: response.incomplete")


def add_to_json(body: bytes, exchange: RiverExchange) -> bytes:
    """A complete response body with ``river``, and ``river_trace`` in its choices if asked for."""
    payload = json.loads(body)
    if not isinstance(payload, dict) or ("error" in payload and payload.get("object") is None):
        return body
    if payload.get("status") in ("queued", "in_progress"):
        return body  # a background response, still to be made
    _add(payload, exchange)
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def _add(payload: dict[str, Any], exchange: RiverExchange) -> None:
    payload["river"] = exchange.report()
    if exchange.trace:
        _add_traces(payload, exchange)
        if "choices" not in payload:
            payload["river_trace"] = exchange.whole_trace()


def _add_traces(payload: dict[str, Any], exchange: RiverExchange) -> None:
    for choice in payload.get("choices") or ():
        if choice.get("finish_reason") is not None:
            choice["river_trace"] = exchange.trace_of(choice["index"])


def _add_deltas(payload: dict[str, Any], exchange: RiverExchange) -> bool:
    """Add the exit layers of new tokens to a chunk's choices; whether there were any."""
    added = False
    for choice in payload["choices"]:
        # A chat's first chunks (role, echoed message) hold no token; vLLM leaves the key out.
        layers = exchange.take_unsent(choice["index"]) if "token_ids" in choice else []
        if layers:
            choice["river_trace_delta"] = layers
            added = True
    return added


class StreamReport:
    """Rewrites a server-sent event stream: the last chunk before ``[DONE]`` gets the report.

    A chunk waits for its successor only if it may be the last: a choice has finished, or there is
    none (the usage chunk). Tokens pass without delay. With ``trace`` each chunk also carries the
    exit layers of its own tokens, ``river_trace_delta``.
    """

    def __init__(self, exchange: RiverExchange) -> None:
        self._exchange = exchange
        self._rest = b""
        self._held: dict[str, Any] | None = None

    def feed(self, data: bytes) -> bytes:
        """The bytes to send on after ``data``; an incomplete event waits for its rest."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        return b"".join(self._event(event) for event in events)

    def close(self) -> bytes:
        """The remaining bytes when the stream ends, with or without ``[DONE]``."""
        rest, self._rest = self._rest, b""
        return self._release(last=True) + rest

    def _event(self, event: bytes) -> bytes:
        if event.startswith(DONE):
            return self._release(last=True) + event + b"\n\n"
        if event.startswith(b":"):  # a keep-alive comment says nothing about what follows
            return event + b"\n\n"
        before = self._release(last=False)
        if event.startswith(b"event:"):
            return before + self._responses_event(event) + b"\n\n"
        may_be_last = b'"finish_reason":"' in event or b'"choices":[]' in event
        if not may_be_last and not self._exchange.trace:
            return before + event + b"\n\n"
        payload = _payload(event)
        if payload is None or "choices" not in payload:
            return before + event + b"\n\n"
        if self._exchange.trace and _add_deltas(payload, self._exchange):
            event = _line(payload)
        if may_be_last:
            self._held = payload
            return before
        return before + event + b"\n\n"

    def _responses_event(self, event: bytes) -> bytes:
        """``event``, with the report if it is the Responses API's final one, the whole response."""
        name, _, data = event.partition(b"\n")
        if name.strip() not in _FINISHED_RESPONSES:
            return event
        payload = _payload(data)
        if payload is None or not isinstance(payload.get("response"), dict):
            return event
        _add(payload["response"], self._exchange)
        payload["river"] = payload["response"]["river"]
        return name + b"\n" + _line(payload)

    def _release(self, last: bool) -> bytes:
        payload, self._held = self._held, None
        if payload is None:
            return b""
        if self._exchange.trace:
            _add_traces(payload, self._exchange)
        if last:
            payload["river"] = self._exchange.report()
        return _line(payload) + b"\n\n"


def _payload(event: bytes) -> dict[str, Any] | None:
    try:
        payload = json.loads(event.removeprefix(b"data:"))
    except ValueError:
        return None
    return payload if isinstance(payload, dict) else None


def _line(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


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
