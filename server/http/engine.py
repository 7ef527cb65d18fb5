"""What the worker reports, asked for at the start and again, since it changes while it runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from server.http.state import RiverState
from server.telemetry.progress import Progress

FOLLOW_SECONDS = 15.0
"""How often the metrics take in what the worker reports."""
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


async def pulse(engine_client: Any, progress: Progress) -> None:
    """Have the engine show that it is alive until the server ends.

    Of several API server processes each sees the outputs of its own requests only, and one of them
    what a step reports. A request may wait there while the engine works for others, and a process
    without requests would not learn that the engine hangs. The engine answers between two steps.
    An answer that fails on its way is asked for again.
    """
    while not engine_client.errored:
        progress.ask()
        with suppress(RuntimeError):
            await engine_info(engine_client)
            progress.answered()
        await asyncio.sleep(min(FOLLOW_SECONDS, progress.stall_seconds / 4))


async def follow(engine_client: Any, state: RiverState) -> None:
    """Keep ``state`` up to date until the server ends."""
    while not engine_client.errored:
        await asyncio.sleep(FOLLOW_SECONDS)
        await refresh(engine_client, state)
