"""River's Prometheus metrics: every decode token once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client import REGISTRY

from river_vllm.modes.exit import ExitSummary
from river_vllm.modes.verified import RECENT, DraftSummary, VerifiedMode
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


def test_each_decode_token_is_counted_once_in_every_metric_and_total(metrics: RiverMetrics) -> None:
    observe(metrics, -L, 3, 3)
    observe(metrics, 12)
    observe(metrics, -5)
    observe(metrics, 1, L - 1)
    assert sample("river_tokens_total", path="river") == 4
    assert sample("river_tokens_total", path="backbone") == 1
    assert sample("river_backbone_layers_total") == 3 + 3 + 12 + 1 + 11
    assert sample("river_skipped_layers_total") == 5 * L - 30
    assert sample("river_exit_layer_count") == 5
    assert sample("river_exit_layer_sum") == 30
    totals = metrics.totals()
    assert totals["tokens"] == 5
    assert totals["tokens_by_path"] == {"backbone": 1, "river": 4}
    assert totals["backbone_layers"] + totals["skipped_layers"] == 5 * L
    assert totals["mean_exit_layer"] == 6.0
    assert list(totals["exit_layers"].items()) == [("1", 1), ("3", 2), ("11", 1), ("12", 1)]


def test_engines_are_counted_apart_and_their_totals_together(metrics: RiverMetrics) -> None:
    observe(metrics, 3, 12)
    observe(metrics, 3, engine=1)
    assert sample("river_tokens_total", path="river") == 1
    assert sample("river_tokens_total", path="river", engine="1") == 1
    assert sample("river_exit_layer_count", engine="1") == 1
    assert metrics.totals()["tokens_by_path"] == {"backbone": 1, "river": 2}
    assert metrics.totals()["exit_layers"] == {"3": 2, "12": 1}


def test_verified_steps(metrics: RiverMetrics) -> None:
    """Whatever was drafted, each decode token ran all layers of the backbone."""
    for drafted, kept, tokens, decode in ((0, 0, 1, False), (4, 2, 3, True)):
        numbers = VerifiedMode().numbers(tokens, depth=L, drafted=drafted, kept=kept, decode=decode)
        summary = DraftSummary()
        summary.add(numbers)
        metrics.count(summary, 0)
    assert sample("river_drafted_tokens_total") == 4
    assert sample("river_accepted_tokens_total") == 2
    totals = metrics.totals()
    assert (totals["drafted"], totals["accepted"]) == (4, 2)
    assert totals["tokens_by_path"] == {"backbone": 3, "river": 0}
    assert totals["exit_layers"] == {str(L): 3}


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
    metrics.set_max_rows(8)
    metrics.set_threshold(0.9)
    metrics.set_threshold(-0.5)
    metrics.set_resident_layers(4)
    for name, value in (("max_rows", 8), ("threshold", -0.5), ("resident_layers", 4)):
        assert sample(f"river_{name}") == sample(f"river_{name}", engine="1") == value
    assert metrics.totals()["mean_exit_layer"] is None
