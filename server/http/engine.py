"""What the worker reports, asked for at the start and again, since it changes while it runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from server.http.state import RiverState

FOLLOW_SECONDS = 15.0
"""How often the metrics take in what the worker reports, at most."""
PATIENCE_SECONDS = 5.0
"""How long a description waits for a busy engine."""


async def engine_info(engine_client: Any) -> dict[str, Any]:
    """The worker's report.

    Raises:
        RuntimeError: the worker does not answer as River's.
    """
    try:
        answers = await engine_client.collective_rpc("river_info")
    except Exception as error:
        raise RuntimeError(f"River is not active in the engine: {error}") from error
    return dict(answers[0])


async def refresh(engine_client: Any, state: RiverState) -> None:
    """Bring ``state`` up to date; an engine that fails or is busy leaves it as it was."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            state.update(await engine_info(engine_client))
    except (RuntimeError, TimeoutError):
        return


async def follow(engine_client: Any, state: RiverState) -> None:
    """Keep ``state`` up to date until the server ends; an answer is a sign of life too.

    The engine answers between two steps. Of several API server processes each sees the outputs of
    its own requests only: a request may wait there while the engine works for others, and a process
    without requests would not learn that the engine hangs. So there a question counts as work. One
    that fails on its way is asked again.
    """
    progress = state.progress
    while not engine_client.errored:
        if not state.single_process:
            progress.ask()
        with suppress(RuntimeError):
            state.update(await engine_info(engine_client))
            progress.answered()
        await asyncio.sleep(min(FOLLOW_SECONDS, progress.stall_seconds / 4))
