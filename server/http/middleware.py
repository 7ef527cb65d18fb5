"""ASGI middleware: the ``river`` field in, the ``river`` report out."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.body import read_body, replay, with_length
from server.http.errors import SHUTTING_DOWN, FieldError, error_response
from server.http.exchange import RiverExchange, current_exchange
from server.http.field import FIELD, GENERATING, OTHERS, take_exchange
from server.http.numbers import refuse_impossible_numbers
from server.http.reporter import Reporter
from server.http.state import RiverState

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
        state: RiverState | None = getattr(scope["app"].state, FIELD, None)
        try:
            body = json.loads(raw)
        except json.JSONDecodeError:
            body = None  # vLLM answers what is wrong with it
        except (ValueError, RecursionError) as error:
            # Not UTF-8, too deep, a number of thousands of digits: vLLM's answer to these has
            # status 400 and no error object.
            response = error_response(f"the body cannot be read: {error}", param="body")
            await response(scope, receive, send)
            return
        if not isinstance(body, dict):
            await self.app(scope, replay(raw, receive), send)
            return
        if state is not None and state.ending.begun:
            response = error_response(SHUTTING_DOWN, HTTPStatus.SERVICE_UNAVAILABLE)
            await response(scope, receive, send)
            return
        given = FIELD in body
        try:
            exchange = _exchange(path, raw, body, state)
            if given:
                raw = json.dumps(body).encode()
                scope = with_length(scope, len(raw))
        except FieldError as error:
            await error_response(str(error), param=error.param)(scope, receive, send)
            return
        except RecursionError as error:  # Python may read more levels than it writes
            response = error_response(f"the body cannot be read: {error}", param="body")
            await response(scope, receive, send)
            return
        receive = replay(raw, receive)
        if exchange is None:
            await self.app(scope, receive, send)
            return
        token = current_exchange.set(exchange)
        try:
            await self.app(scope, receive, Reporter(exchange, scope, receive, send))
        finally:
            current_exchange.reset(token)


def _exchange(
    path: str, raw: bytes, body: dict[str, Any], state: RiverState | None
) -> RiverExchange | None:
    """The request's exchange, and ``body`` without the field.

    Raises:
        FieldError: something in the body is not allowed.
    """
    if state is None:
        if FIELD in body:
            raise FieldError(FIELD, f"'{FIELD}': this server's model has no river")
        return None
    exchange = take_exchange(path, body, state)
    refuse_impossible_numbers(raw, body)
    return exchange
