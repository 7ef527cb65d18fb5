"""Requests' rows, and what a router would have decided about them."""

from __future__ import annotations

from river_vllm.request import RiverSettings
from river_vllm.router.batch import ExitUnit, StepBatch
from river_vllm.worker.feed import BatchFeed, RequestRows

SETTINGS = RiverSettings(True, 0.9, 2)
OFF = RiverSettings(False, 0.9, 2)
NEVER = RiverSettings(True, 1.0, 2)


def rows(
    request_id: str,
    count: int,
    position: int,
    prompt: int = 4,
    start: int = 0,
    settings: RiverSettings = SETTINGS,
) -> RequestRows:
    return RequestRows(request_id, start, count, position, prompt, settings)


def route(batch: StepBatch, *depths: int) -> None:
    """What the router leaves behind: one depth per unit."""
    assert len(batch.units) == len(depths)
    batch.exit_layer[:] = depths


def step(feed: BatchFeed, requests: list[RequestRows], *depths: int) -> dict[str, int]:
    route(feed.begin(requests), *depths)
    return feed.finish()


def free(row: int, settings: RiverSettings = SETTINGS) -> ExitUnit:
    """The unit of a token that decides for itself."""
    return ExitUnit(row, row + 1, settings.threshold, settings.min_layers)


def replay(row: int, depth: int) -> ExitUnit:
    """The unit of a token that takes the depth it had before."""
    return ExitUnit(row, row + 1, -1.0, depth, forced=True)
