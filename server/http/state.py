"""The HTTP side's view of the running engine, kept on ``app.state.river``."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any
from uuid import uuid4

from opentelemetry.trace import Tracer

from river_vllm.config import RiverConfig, recorded_settings
from river_vllm.guarantee import DialRecord, ModelRecord
from river_vllm.request import RiverSettings
from server.telemetry.metrics import RiverMetrics
from server.telemetry.progress import Ending, Progress


def _identity() -> str:
    # vLLM's metrics folder, the same for all API server processes of one server.
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or uuid4().hex
    return sha256(shared.encode()).hexdigest()[:16]


@dataclass(slots=True)
class RiverState:
    """Defaults in force, the worker's report, and the metrics."""

    model: str
    config: RiverConfig
    engine: dict[str, Any]
    """The worker's report: layers, quantiser, kernels, memory."""
    defaults: RiverSettings
    metrics: RiverMetrics
    progress: Progress
    single_process: bool
    """Whether this is the only API server process of the engine."""
    first_process: bool = True
    """Whether this process writes the summary for all API server processes."""
    checkpoint: ModelRecord = field(default_factory=lambda: ModelRecord(name=""))
    """The served checkpoint, as far as its files tell."""
    ending: Ending = field(default_factory=Ending)
    tracer: Tracer | None = None
    """Makes the requests' spans; None unless vLLM exports its own."""
    identity: str = field(default_factory=_identity)
    """Identifies this start of the server in its totals; the same in all of its processes."""

    @property
    def num_layers(self) -> int:
        return int(self.engine["num_layers"])

    def update(self, engine: dict[str, Any]) -> None:
        """Store the worker's new report."""
        self.engine = engine
        self.metrics.set("river_resident_layers", engine["resident_layers"])
        if (max_rows := engine["crossover"]["max_rows"]) is not None:
            self.metrics.set("river_max_rows", max_rows)

    def set_threshold(self, threshold: float) -> None:
        """Change the default τ; requests that arrive from now on take it."""
        self.defaults = replace(self.defaults, threshold=threshold)
        self.metrics.set("river_threshold", threshold)

    def _calibration(self) -> dict[str, Any] | None:
        """The calibration of the defaults, and whether its guarantee covers this server."""
        calibration = self.config.calibration
        if calibration is None:
            return None
        now = self.defaults
        dial = DialRecord(threshold=now.threshold, min_layers=now.min_layers)
        settings = recorded_settings(self.config, self.engine)
        doubts = calibration.doubts(dial, self.checkpoint, settings)
        return {
            **calibration.model_dump(mode="json"),
            "in_force": not doubts,
            "not_in_force_because": doubts,
        }

    def describe(self) -> dict[str, Any]:
        """The body of ``GET /river``."""
        return {
            "active": True,
            "model": self.model,
            "mode": self.defaults.mode,
            "threshold": self.defaults.threshold,
            "min_layers": self.defaults.min_layers,
            "prefill": self.config.prefill,
            "scope": self.config.scope,
            "calibration": self._calibration(),
            **self.engine,
        }


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
