"""Who may use River's own routes, however the server was started.

vLLM's middleware asks for a key under ``/v1`` and a few other prefixes; a plugin's routes are open
beside it. Where there is no key at all, a server on the loopback address is still in reach of every
web page that its user opens, so what changes something must not come from one.
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
"""All of River's routes but the public ``/ready``."""
_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS = {"http": 80, "https": 443}


class RiverGuard:
    """Added by the plugin, so that it is there where ``--middleware`` names nothing of River's."""

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
    """Why a request without a key may change nothing, None where it may.

    A name in ``Host`` that is not this machine's may be one that a web page has had resolved to
    the loopback address; an address can't. A page of another origin sends its own as ``Origin``;
    clients that are no browsers send none.

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
    """Host and port, where a proxy may have taken TLS off in between."""
    return parts.hostname, parts.port or _PORTS.get(scheme)


def _is_known(name: str | None, bound: str | None) -> bool:
    if not name:
        return False
    if _is_address(name) or name in ("localhost", (bound or "").lower()):
        return True
    # Who is bound to more than the loopback address is asked for by the machine's name too.
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
