"""Serves the console: static files of this package, which hold no data of the server."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from server.http.console.session import close_session, open_session

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
