"""ASGI middleware: the ``river`` field in, the ``river`` report out."""

from __future__ import annotations

import json
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.auth import path_of
from server.http.body import (
    BodyTooLongError,
    bounded,
    read_body,
    refuse_impossible_values,
    replay,
    with_length,
)
from server.http.errors import SHUTTING_DOWN, FieldError, error_response
from server.http.exchange import (
    FIELD,
    GENERATING,
    OTHERS,
    RiverExchange,
    current_exchange,
    take_exchange,
)
from server.http.report import Reporter
from server.http.state import RiverState
from server.telemetry.progress import Ending
from server.telemetry.spans import request_span

_PATHS = frozenset(GENERATING + OTHERS)


class RiverMiddleware:
    """The innermost middleware, before vLLM's routes; streams pass event by event."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state: RiverState | None = getattr(scope["app"].state, FIELD, None)
        if state is not None:  # stock vLLM's requests stay as they are
            receive, send = bounded(scope, receive), _leaving(send, state.ending)
        path = path_of(scope)
        if scope["method"] == "POST" and path in _PATHS:
            await self._generate(path, state, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _generate(
        self, path: str, state: RiverState | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            raw = await read_body(receive)
        except BodyTooLongError as error:
            await error_response(error.detail, HTTPStatus(error.status_code))(scope, receive, send)
            return
        if raw is None:
            return
        if state is not None and state.ending.begun:
            response = error_response(SHUTTING_DOWN, HTTPStatus.SERVICE_UNAVAILABLE)
            await response(scope, receive, send)
            return
        try:
            body, exchange = _take(path, raw, state)
        except FieldError as error:
            await error_response(str(error), param=error.param)(scope, receive, send)
            return
        if body is not raw:
            scope = with_length(scope, len(body))
        # Free the body: the answer may take minutes.
        receive = replay(body, receive)
        del raw, body
        if state is None or exchange is None:
            await self.app(scope, receive, send)
            return
        token = current_exchange.set(exchange)
        try:
            with request_span(state.tracer, scope, exchange.report) as scope:
                reporter = Reporter(exchange, scope, receive, send)
                try:
                    await self.app(scope, receive, reporter)
                except Exception as error:
                    await reporter.refuse(error)
        finally:
            current_exchange.reset(token)


def _leaving(send: Send, ending: Ending) -> Send:
    """A ``send`` that closes each connection after its answer, once the server shuts down.

    The next connection of the client or proxy may lead to another server.
    """

    async def sent(message: Message) -> None:
        if ending.begun and message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            message = {**message, "headers": headers}
        await send(message)

    return sent


def _take(path: str, raw: bytes, state: RiverState | None) -> tuple[bytes, RiverExchange | None]:
    """The body for vLLM, without the field, and the request's exchange.

    Raises:
        FieldError: something in the body is not allowed.
    """
    try:
        body = json.loads(raw)
    except json.JSONDecodeError:
        return raw, None  # vLLM reports the error
    except (ValueError, RecursionError) as error:
        # Not UTF-8, too deep, a number of thousands of digits: vLLM answers these with status 400
        # and no error object.
        raise FieldError("body", f"the body cannot be read: {error}") from None
    if not isinstance(body, dict):
        return raw, None
    given = FIELD in body
    if state is None:
        if given:
            raise FieldError(FIELD, f"'{FIELD}': this server's model has no river")
        return raw, None
    refuse_impossible_values(raw, body)
    exchange = take_exchange(path, body, state)
    return (json.dumps(body).encode() if given else raw), exchange
