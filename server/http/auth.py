"""Who may ask: keys for every route, and River's own routes against strange web pages.

vLLM's middleware asks for a key under ``/v1`` and a few other prefixes, not on a plugin's routes,
and answers without an error object. Every web page that a user opens can reach a server on the
loopback address. Without a key, a request from such a page must not change anything.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from argparse import Namespace
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from river_vllm.compat import vllm_envs
from river_vllm.errors import shortened
from server.http.console.page import opens_console, signin_page, wants_signin
from server.http.errors import error_response
from server.telemetry.progress import ending

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
    if _is_preflight(scope, headers) or opens_console(scope, path, keys):
        return True
    if scope.get("method") == "GET" and path in READ_BY_METRICS_KEYS:
        keys = [*keys, *getattr(args, "metrics_keys", ())]
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    digest = _digest(given.strip())
    # A list: every key is compared, so that the response time does not tell which one was close.
    return True in [secrets.compare_digest(digest, _digest(key)) for key in keys]


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """Whether a request is a CORS preflight: a browser sends no key with it, and vLLM's CORS
    middleware answers it. Mounted applications answer any other OPTIONS request as GET."""
    asks = "origin" in headers and "access-control-request-method" in headers
    return scope.get("method") == "OPTIONS" and asks


def unauthorized(scope: Scope) -> Response:
    """The answer to a request without a key."""
    if wants_signin(scope, path_of(scope)):
        return signin_page()
    message = "Missing or wrong API key: send 'Authorization: Bearer KEY'"
    return error_response(message, HTTPStatus.UNAUTHORIZED)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


ROUTES = "/river"
"""Prefix of River's routes, except the public ``/ready``."""
_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS = {"http": 80, "https": 443}


class RiverGuard:
    """Middleware added by the plugin, so that it needs no ``--middleware`` option."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not f"{path_of(scope)}/".startswith(f"{ROUTES}/"):
            await self.app(scope, receive, send)
            return
        args = scope["app"].state.args
        if keys_of(args):
            refusal = None if opens(scope, args) else unauthorized(scope)
        elif scope["method"] in _HARMLESS or (reason := stranger(scope, args)) is None:
            refusal = None
        else:
            refusal = error_response(reason, HTTPStatus.FORBIDDEN)
        await (refusal or self.app)(scope, receive, send)


def stranger(scope: Scope, args: Namespace) -> str | None:
    """The reason to refuse a change by a request without a key, or None.

    DNS rebinding: a web page can let its own host name resolve to the loopback address. So ``Host``
    must be an address or a name of this machine. Browsers send a page's origin as ``Origin``; other
    clients send none.

    Args:
        args: the server's arguments; ``host`` is the address or name that it was bound to.
    """
    headers = Headers(scope=scope)
    host, origin = headers.get("host", ""), headers.get("origin")
    cure = "set an API key to change this server from elsewhere"
    target = _split(f"//{host}")
    if target is None or not _is_known(target.hostname, args.host):
        return (
            f"Host '{shortened(host)}' is not known here: must be an IP address, 'localhost' or "
            f"the name that --host gives; {cure}"
        )
    if origin is None:
        return None
    page = _split(origin)
    if page is None or _place(page, page.scheme) != _place(target, page.scheme):
        return f"Origin '{shortened(origin)}' is a page of another server; {cure}"
    return None


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _place(parts: SplitResult, scheme: str) -> tuple[str | None, int | None]:
    """Host and port, by default that of ``scheme``, since a proxy may end TLS."""
    return parts.hostname, parts.port or _PORTS.get(scheme)


def _is_known(name: str | None, bound: str | None) -> bool:
    if not name:
        return False
    if _is_address(name) or name in ("localhost", (bound or "").lower()):
        return True
    # Clients may use the machine's name unless only the loopback address is bound.
    return not _is_loopback(bound) and name == socket.gethostname().lower()


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(bound: str | None) -> bool:
    if bound is None:  # vLLM's own default is every address
        return False
    return bound == "localhost" or (_is_address(bound) and ip_address(bound).is_loopback)


def path_of(scope: Scope) -> str:
    """The path within the application, read exactly as the router reads it.

    A guard that reads paths differently can miss a route. With ``--root-path /`` taken off as text,
    ``/river`` is ``river``: the router finds the route, a list of guarded paths does not.
    """
    return get_route_path(scope)
