"""Keys for every route: vLLM guards only some prefixes and answers without an error object."""

from __future__ import annotations

import hashlib
import secrets
from argparse import Namespace
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from river_vllm.compat import vllm_envs
from server.http.console.page import PATH
from server.http.console.session import opens_console, signin_page, wants_signin
from server.http.errors import error_response
from server.http.path import path_of
from server.telemetry.ending import ending

PUBLIC = frozenset({"/health", "/ready", "/version"})
METRICS = "/metrics"
READ_BY_METRICS_KEYS = frozenset({METRICS, "/river", "/river/stats"})
"""Routes that a metrics key opens, by ``GET`` alone."""
INACTIVE = "River is not active in this server: its plugin did not load"


class RiverAuthMiddleware:
    """Outermost middleware (vLLM's ``--middleware``): refuses requests without a key.

    Without configured keys every route is open. An app without River's plugin does not start:
    vLLM only logs a plugin that fails to load.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            if getattr(scope["app"].state, "river", None) is None:
                # uvicorn would read an exception as an app without lifespan, and serve it.
                ending.begin(failed=True)
                await receive()
                await send({"type": "lifespan.startup.failed", "message": INACTIVE})
                return
        elif not self._allowed(scope):
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": "Unauthorized"})
                return
            await unauthorized(scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    @staticmethod
    def _allowed(scope: Scope) -> bool:
        args = scope["app"].state.args
        path = path_of(scope)
        if path in PUBLIC or (path == METRICS and getattr(args, "river_open_metrics", False)):
            return True
        return not keys_of(args) or opens(scope, args)


def keys_of(args: Namespace) -> list[str]:
    """A server's API keys, found as vLLM finds them (``entrypoints/serve/middleware/register.py``);
    empty ones are left out."""
    return [key for key in args.api_key or [vllm_envs.VLLM_API_KEY] if key]


def opens(scope: Scope, args: Namespace) -> bool:
    """Whether a request has a key for its route, or needs none."""
    headers = Headers(scope=scope)
    path, keys = path_of(scope), keys_of(args)
    if _is_preflight(scope, headers) or opens_console(scope, path, keys, PATH):
        return True
    if scope.get("method") == "GET" and path in READ_BY_METRICS_KEYS:
        keys = [*keys, *getattr(args, "metrics_keys", ())]
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    digest = _digest(given.strip())
    # Every key is compared: the response time must not tell which key was close.
    allowed = False
    for key in keys:
        allowed |= secrets.compare_digest(digest, _digest(key))
    return allowed


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """Whether a request is a CORS preflight: a browser sends no key with it, and vLLM's CORS
    middleware answers it. Mounted applications answer any other OPTIONS request as GET."""
    asks = "origin" in headers and "access-control-request-method" in headers
    return scope.get("method") == "OPTIONS" and asks


def unauthorized(scope: Scope) -> Response:
    """The answer to a request without a key."""
    if wants_signin(scope, path_of(scope), PATH):
        return signin_page()
    message = "Missing or wrong API key: send 'Authorization: Bearer KEY'"
    return error_response(message, HTTPStatus.UNAUTHORIZED)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
