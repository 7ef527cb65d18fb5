"""Asks the worker for its report, at the start and while the server runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from server.http.state import RiverState

FOLLOW_SECONDS = 15.0
"""Longest pause between two questions to the worker."""
PATIENCE_SECONDS = 5.0
"""How long ``GET /river`` waits for a busy engine."""


async def engine_info(engine_client: Any) -> dict[str, Any]:
    """The worker's report.

    Raises:
        RuntimeError: the worker does not answer ``river_info``.
    """
    try:
        answers = await engine_client.collective_rpc("river_info")
    except Exception as error:
        raise RuntimeError(f"River is not active in the engine: {error}") from error
    return dict(answers[0])


async def refresh(engine_client: Any, state: RiverState) -> None:
    """Update ``state`` from the worker; unchanged if the engine fails or stays busy."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            state.update(await engine_info(engine_client))
    except (RuntimeError, TimeoutError):
        return


async def follow(engine_client: Any, state: RiverState) -> None:
    """Update ``state`` while the engine is alive; each answer also counts as progress.

    The engine answers between two steps. Each of several API server processes sees the outputs of
    its own requests only. Its request may wait while the engine works for another process, and
    without requests it would not notice a hanging engine. So there a question counts as work. A
    failed question is repeated.
    """
    progress = state.progress
    while not engine_client.errored:
        if not state.single_process:
            progress.ask()
        with suppress(RuntimeError):
            state.update(await engine_info(engine_client))
            progress.answered()
        await asyncio.sleep(min(FOLLOW_SECONDS, progress.stall_seconds / 4))
