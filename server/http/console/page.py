"""Serves the console: static files of this package, which hold no data of the server, and sign-in.

A browser cannot send a key with its request for a page. Without a key the console answers 401 like
every route; for a browser the body is a sign-in page. This page asks for the key and sends it once,
in the ``Authorization`` header. The answer sets a cookie that opens the console's own files. No
other route reads the cookie, so a foreign page gains nothing from it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PATH = "/river/console"
STATIC = Path(__file__).parent / "static"

HEADERS = {
    # Only files of this server: no inline script or style, no frame, no form target, no plugin.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def _page(request: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers=HEADERS)


def _without_slash(request: Request) -> Response:
    # The page names its files relative to the path without a slash at its end.
    return RedirectResponse("../console")


def attach_console(app: FastAPI) -> None:
    """Add the console's routes to ``app``; they are no part of its API description."""
    app.router.routes += [
        Route(PATH, _page, methods=["GET"]),
        Route(PATH + "/", _without_slash, methods=["GET"]),
        Route(PATH, open_session, methods=["POST"]),
        Route(PATH, close_session, methods=["DELETE"]),
    ]
    app.mount(PATH, _Files(directory=STATIC), name="river-console")


COOKIE = "river_console"
_SIGNIN = Path(__file__).parent / "signin"


def token(key: str) -> str:
    """The cookie's value: it proves the key, does not reveal it, and is valid while the key is.

    Every process and replica with the key computes the same value, so none stores it.
    """
    return hmac.new(key.encode(), b"river console", hashlib.sha256).hexdigest()


def opens_console(scope: Scope, path: str, keys: Iterable[str]) -> bool:
    """Whether the request reads the console's files and brings the cookie of one of ``keys``."""
    if scope.get("method") not in ("GET", "HEAD") or not f"{path}/".startswith(f"{PATH}/"):
        return False
    given = HTTPConnection(scope).cookies.get(COOKIE, "").encode()
    # A list: every key is compared, so that the response time does not tell which one was close.
    return True in [hmac.compare_digest(given, token(key).encode()) for key in keys]


def wants_signin(scope: Scope, path: str) -> bool:
    """Whether a refused request is a browser asking for the console."""
    if scope.get("method") != "GET" or path.removesuffix("/") != PATH:
        return False
    return "text/html" in HTTPConnection(scope).headers.get("accept", "")


@cache
def _signin() -> tuple[str, str]:
    """The page and its content policy, with the hashes of its own script and style."""
    style, script, page = (
        (_SIGNIN / name).read_text(encoding="utf-8")
        for name in ("signin.css", "signin.js", "signin.html")
    )
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.replace("/*style*/", style).replace("/*script*/", script), policy


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def signin_page() -> Response:
    """HTTP 401 with a page that asks for the key."""
    page, policy = _signin()
    own = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
    headers = {**HEADERS, **own, "WWW-Authenticate": "Bearer"}
    return HTMLResponse(page, HTTPStatus.UNAUTHORIZED, headers)


def open_session(request: Request) -> Response:
    """Set the console's cookie for the key of the request."""
    response = Response(status_code=HTTPStatus.NO_CONTENT)
    _, _, key = request.headers.get("authorization", "").partition(" ")
    if key.strip():
        response.set_cookie(COOKIE, token(key.strip()), **_scope(request))
    return response


def close_session(request: Request) -> Response:
    """Delete the console's cookie."""
    response = Response(status_code=HTTPStatus.NO_CONTENT)
    response.delete_cookie(COOKIE, **_scope(request))
    return response


def _scope(request: Request) -> dict[str, Any]:
    """Where a browser sends the cookie."""
    secure = request.url.scheme == "https"
    return {"path": request.url.path, "secure": secure, "httponly": True, "samesite": "strict"}
