"""Guards River's own routes, however the server was started.

vLLM's middleware asks for a key under ``/v1`` and a few other prefixes, not on a plugin's routes.
Every web page that a user opens can reach a server on the loopback address. Without a key, a
request from such a page must not change anything.
"""

from __future__ import annotations

import socket
from argparse import Namespace
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from river_vllm.errors import shortened
from server.http.auth import keys_of, opens, unauthorized
from server.http.errors import error_response
from server.http.path import is_within, path_of

ROUTES = "/river"
"""Prefix of River's routes, except the public ``/ready``."""
_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS = {"http": 80, "https": 443}


class RiverGuard:
    """Middleware added by the plugin, so that it needs no ``--middleware`` option."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_within(path_of(scope), ROUTES):
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
