"""The HTTP side's view of the running engine, kept on ``app.state.river``."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any
from uuid import uuid4

from opentelemetry.trace import Tracer

from river_vllm.config import RiverConfig, recorded_settings
from river_vllm.guarantee import DialRecord, ModelRecord
from river_vllm.request import RiverSettings
from server.telemetry.ending import Ending
from server.telemetry.metrics import RiverMetrics
from server.telemetry.progress import Progress


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
        self.metrics.set_resident_layers(int(engine["resident_layers"]))
        if (max_rows := engine["crossover"]["max_rows"]) is not None:
            self.metrics.set_max_rows(max_rows)

    def set_threshold(self, threshold: float) -> None:
        """Change the default τ; requests that arrive from now on take it."""
        self.defaults = replace(self.defaults, threshold=threshold)
        self.metrics.set_threshold(threshold)

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
