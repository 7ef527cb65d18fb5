"""River's Prometheus metrics: every decode token once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client import REGISTRY

from river_vllm.modes.exit import ExitSummary
from river_vllm.modes.verified import RECENT, DraftSummary
from server.telemetry.metrics import RiverMetrics, river_metrics

L = 12
LABELS = {"model_name": "tiny", "engine": "0"}


@pytest.fixture
def metrics() -> Iterator[RiverMetrics]:
    _unregister()  # another test of this process may have made River's metrics
    yield RiverMetrics(L, "tiny", (0, 1))
    _unregister()


def _unregister() -> None:
    river_metrics.cache_clear()
    for collector, names in list(REGISTRY._collector_to_names.items()):
        if any(name.startswith("river_") for name in names):
            REGISTRY.unregister(collector)


def observe(metrics: RiverMetrics, *depths: int, engine: int = 0) -> None:
    summary = ExitSummary()
    summary.add(np.array(depths, dtype=np.int16))
    metrics.count(summary, engine)


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, LABELS | labels)


def test_engines_are_counted_apart_and_their_totals_together(metrics: RiverMetrics) -> None:
    observe(metrics, 3, 12)
    observe(metrics, 3, engine=1)
    assert sample("river_tokens_total", path="river") == 1
    assert sample("river_tokens_total", path="river", engine="1") == 1
    assert sample("river_exit_layer_count", engine="1") == 1
    assert metrics.totals()["tokens_by_path"] == {"backbone": 1, "river": 2}
    assert metrics.totals()["exit_layers"] == {"3": 2, "12": 1}


def test_the_acceptance_is_that_of_the_tokens_drafted_last(metrics: RiverMetrics) -> None:
    """It has no series before some hundreds are known."""
    few = DraftSummary(drafted=RECENT - 1, accepted=0)
    metrics.count(few, 1)
    assert sample("river_draft_acceptance", engine="1") is None
    metrics.count(DraftSummary(drafted=1, accepted=1), 1)
    assert sample("river_draft_acceptance", engine="1") == 1 / RECENT
    assert sample("river_draft_acceptance") is None
    for _ in range(20):
        metrics.count(DraftSummary(drafted=RECENT, accepted=RECENT), 1)
    assert sample("river_draft_acceptance", engine="1") == pytest.approx(1.0, abs=0.01)


def test_what_the_server_is_told_has_a_series_once_it_is_known(metrics: RiverMetrics) -> None:
    """0 for a limit on rows would say that no row may leave."""
    assert sample("river_max_rows") is None
    metrics.set("river_max_rows", 8)
    metrics.set("river_threshold", 0.9)
    metrics.set("river_threshold", -0.5)
    for name, value in (("river_max_rows", 8), ("river_threshold", -0.5)):
        assert sample(name) == sample(name, engine="1") == value
    assert metrics.totals()["mean_exit_layer"] is None
