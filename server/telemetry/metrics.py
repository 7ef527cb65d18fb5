"""River's Prometheus metrics: each decode token counts once, where vLLM counts its own tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from river_vllm.compat import get_prometheus_registry
from river_vllm.modes.mode import Summary
from river_vllm.modes.verified import RECENT, RecentDrafts

_LABELS = ["model_name", "engine"]
"""The labels of vLLM's own series (``v1/metrics/loggers.py``)."""


class RiverMetrics:
    """Counters over decode tokens; an answer's first token comes from the prefill.

    Args:
        num_layers: L, the depth of a token that never left the backbone.
        model_name: the name under which the model is served.
        engines: indexes of the engines that this server has, its data-parallel ranks.
    """

    def __init__(self, num_layers: int, model_name: str, engines: Sequence[int]) -> None:
        self._num_layers = num_layers
        self._labels = labels = {engine: (model_name, str(engine)) for engine in engines}

        def counter(name: str, text: str) -> dict[int, Counter]:
            made = Counter(name, text, _LABELS)
            return {engine: made.labels(*values) for engine, values in labels.items()}

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, _LABELS, multiprocess_mode="mostrecent")

        depth = Histogram(
            "river_exit_layer",
            "Backbone layers run by each decode token.",
            _LABELS,
            buckets=[float(layer) for layer in range(1, num_layers + 1)],
        )
        self._depth = {engine: depth.labels(*values) for engine, values in labels.items()}
        tokens = Counter(
            "river_tokens",
            "Decode tokens, by the path on which they finished.",
            [*_LABELS, "path"],
        )
        self._on_backbone = {e: tokens.labels(*values, "backbone") for e, values in labels.items()}
        self._on_river = {e: tokens.labels(*values, "river") for e, values in labels.items()}
        self._run = counter("river_backbone_layers", "Backbone layers run by decode tokens.")
        self._skipped = counter(
            "river_skipped_layers", "Layers that decode tokens ran in 4 bit instead."
        )
        self._held = counter(
            "river_held_tokens",
            "Decode tokens held on the backbone because leaving would not have paid.",
        )
        self._drafted = counter(
            "river_drafted_tokens", "Tokens that the river drafted and the backbone checked."
        )
        self._accepted = counter(
            "river_accepted_tokens", "Drafted tokens that the backbone kept, in answers."
        )
        self._recent = {engine: RecentDrafts() for engine in engines}
        self._acceptance = gauge(
            "river_draft_acceptance",
            f"Share kept of the tokens drafted last, once {RECENT} were drafted.",
        )
        self._threshold = gauge("river_threshold", "Default exit threshold.")
        self._max_rows = gauge(
            "river_max_rows",
            "Rows of a step up to which leaving the backbone pays; with more, all stay.",
        )
        self._resident = gauge(
            "river_resident_layers", "Decoder layers that hold their bf16 weights all the time."
        )

    def set_resident_layers(self, layers: int) -> None:
        self._set(self._resident, layers)

    def set_max_rows(self, rows: int) -> None:
        self._set(self._max_rows, rows)

    def set_threshold(self, threshold: float) -> None:
        self._set(self._threshold, threshold)

    def _set(self, gauge: Gauge, value: float) -> None:
        """Set a gauge for every engine, as all share their settings; an unset one has no series."""
        for values in self._labels.values():
            gauge.labels(*values).set(value)

    def count(self, summary: Summary, engine: int) -> None:
        """Add the counts of one engine's new tokens."""
        for layer, count in summary.by_layer(self._num_layers).items():
            for _ in range(count):
                self._depth[engine].observe(layer)
            path = self._on_backbone if layer == self._num_layers else self._on_river
            path[engine].inc(count)
            self._run[engine].inc(layer * count)
            self._skipped[engine].inc((self._num_layers - layer) * count)
        self._held[engine].inc(summary.held)
        self._drafted[engine].inc(summary.drafted)
        self._accepted[engine].inc(summary.accepted)
        share = self._recent[engine].add(summary.drafted, summary.accepted)
        if share is not None:
            self._acceptance.labels(*self._labels[engine]).set(share)

    def totals(self) -> dict[str, Any]:
        """The body of ``GET /river/stats``, over all engines, read back from the metrics."""
        samples = _samples()

        def total(name: str, label: str = "") -> int:
            return int(samples[name, label])

        layers: dict[str, int] = {}
        below = 0
        for layer in range(1, self._num_layers + 1):
            upto = total("river_exit_layer_bucket", f"{float(layer)}")
            if upto > below:
                layers[str(layer)] = upto - below
            below = max(below, upto)
        backbone = total("river_tokens_total", "backbone")
        river = total("river_tokens_total", "river")
        run = total("river_backbone_layers_total")
        tokens = backbone + river
        return {
            "num_layers": self._num_layers,
            "tokens": tokens,
            "tokens_by_path": {"backbone": backbone, "river": river},
            "backbone_layers": run,
            "skipped_layers": total("river_skipped_layers_total"),
            "held_tokens": total("river_held_tokens_total"),
            "mean_exit_layer": round(run / tokens, 3) if tokens else None,
            "exit_layers": layers,
            "drafted": total("river_drafted_tokens_total"),
            "accepted": total("river_accepted_tokens_total"),
        }


@cache
def river_metrics(num_layers: int, model_name: str, engines: tuple[int, ...]) -> RiverMetrics:
    """The process's metrics; Prometheus allows each name once."""
    return RiverMetrics(num_layers, model_name, engines)


def _samples() -> dict[tuple[str, str], float]:
    """River's samples by name and path or bucket, over all engines and API server processes."""
    samples: dict[tuple[str, str], float] = defaultdict(float)
    for metric in get_prometheus_registry().collect():
        for sample in metric.samples if metric.name.startswith("river_") else ():
            label = sample.labels.get("le") or sample.labels.get("path") or ""
            samples[sample.name, label] += sample.value
    return samples
