"""River's Prometheus metrics: each decode token counts once, where vLLM counts its own tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from river_vllm.compat import get_prometheus_registry
from river_vllm.modes.exit import ExitSummary
from river_vllm.modes.mode import Summary
from river_vllm.modes.verified import RECENT, RecentDrafts

_LABELS = ["model_name", "engine"]
"""The labels of vLLM's own series (``v1/metrics/loggers.py``)."""


_COUNTERS = {
    "river_backbone_layers": "Backbone layers run by decode tokens.",
    "river_skipped_layers": "Layers that decode tokens ran in 4 bit instead.",
    "river_held_tokens": "Decode tokens held on the backbone because leaving would not have paid.",
    "river_drafted_tokens": "Tokens that the river drafted and the backbone checked.",
    "river_accepted_tokens": "Drafted tokens that the backbone kept, in answers.",
}
_GAUGES = {
    "river_draft_acceptance": f"Share kept of the tokens drafted last, once {RECENT} were drafted.",
    "river_threshold": "Default exit threshold.",
    "river_max_rows": "Rows of a step up to which leaving the backbone pays; with more, all stay.",
    "river_resident_layers": "Decoder layers that hold their bf16 weights all the time.",
}


class RiverMetrics:
    """Counters over decode tokens; an answer's first token comes from the prefill.

    Args:
        num_layers: L, the depth of a token that never left the backbone.
        model_name: the name under which the model is served.
        engines: indexes of the engines that this server has, its data-parallel ranks.
    """

    def __init__(self, num_layers: int, model_name: str, engines: Sequence[int]) -> None:
        self._num_layers = num_layers
        self._labels = {engine: (model_name, str(engine)) for engine in engines}
        self._recent = {engine: RecentDrafts() for engine in engines}
        self._depth = Histogram(
            "river_exit_layer",
            "Backbone layers run by each decode token.",
            _LABELS,
            buckets=[float(layer) for layer in range(1, num_layers + 1)],
        )
        text = "Decode tokens, by the path on which they finished."
        self._tokens = Counter("river_tokens", text, [*_LABELS, "path"])
        self._counters = {name: Counter(name, text, _LABELS) for name, text in _COUNTERS.items()}
        self._gauges = {
            name: Gauge(name, text, _LABELS, multiprocess_mode="mostrecent")
            for name, text in _GAUGES.items()
        }
        # What counts has its series from the start; an unset gauge has none.
        for engine in engines:
            self.count(ExitSummary(), engine)

    def set(self, gauge: str, value: float) -> None:
        """Set a gauge for every engine, as all share their settings."""
        for labels in self._labels.values():
            self._gauges[gauge].labels(*labels).set(value)

    def count(self, summary: Summary, engine: int) -> None:
        """Add the counts of one engine's new tokens."""
        labels, layers = self._labels[engine], summary.by_layer(self._num_layers)
        depth = self._depth.labels(*labels)
        for layer, count in layers.items():
            for _ in range(count):
                depth.observe(layer)
        on_backbone, tokens = layers.get(self._num_layers, 0), sum(layers.values())
        self._tokens.labels(*labels, "backbone").inc(on_backbone)
        self._tokens.labels(*labels, "river").inc(tokens - on_backbone)
        run = sum(layer * count for layer, count in layers.items())
        counts = {
            "river_backbone_layers": run,
            "river_skipped_layers": self._num_layers * tokens - run,
            "river_held_tokens": summary.held,
            "river_drafted_tokens": summary.drafted,
            "river_accepted_tokens": summary.accepted,
        }
        for name, count in counts.items():
            self._counters[name].labels(*labels).inc(count)
        share = self._recent[engine].add(summary.drafted, summary.accepted)
        if share is not None:
            self._gauges["river_draft_acceptance"].labels(*labels).set(share)

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
