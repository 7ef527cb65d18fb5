"""A middleware for ``--middleware``: how many tasks the server's event loop holds."""

from __future__ import annotations

import asyncio

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/test/tasks"


class TaskProbe:
    """Answers ``GET /test/tasks``; everything else passes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH:
            await PlainTextResponse(str(len(asyncio.all_tasks())))(scope, receive, send)
        else:
            await self.app(scope, receive, send)
