"""River's Prometheus metrics: every decode token once, where vLLM counts its own tokens."""

from __future__ import annotations

from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from river_vllm.compat import get_prometheus_registry
from river_vllm.modes.mode import Summary


class RiverMetrics:
    """Counters over decode tokens; a prompt's first token comes out of its prefill.

    Args:
        num_layers: L, the depth of a token that never left the backbone.
    """

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._depth = Histogram(
            "river_exit_layer",
            "Backbone layers run by each decode token.",
            buckets=[float(layer) for layer in range(1, num_layers + 1)],
        )
        tokens = Counter(
            "river_tokens", "Decode tokens, by the path on which they finished.", ["path"]
        )
        self._on_backbone = tokens.labels(path="backbone")
        self._on_river = tokens.labels(path="river")
        self._run = Counter("river_backbone_layers", "Backbone layers run by decode tokens.")
        self._skipped = Counter(
            "river_skipped_layers", "Layers that decode tokens ran in 4 bit instead."
        )
        self._held = Counter(
            "river_held_tokens",
            "Decode tokens held on the backbone because leaving would not have paid.",
        )
        self._threshold = Gauge(
            "river_threshold", "Default exit threshold.", multiprocess_mode="mostrecent"
        )

        self._max_rows = Gauge(
            "river_max_rows",
            "Rows of a step up to which leaving the backbone pays; with more, all stay.",
            multiprocess_mode="mostrecent",
        )

        self._drafted = Counter(
            "river_drafted_tokens", "Tokens that the river drafted and the backbone checked."
        )
        self._accepted = Counter(
            "river_accepted_tokens", "Drafted tokens that the backbone kept, in answers."
        )

        self._resident = Gauge(
            "river_resident_layers",
            "Decoder layers that hold their bf16 weights all the time.",
            multiprocess_mode="mostrecent",
        )

    def set_resident_layers(self, layers: int) -> None:
        self._resident.set(layers)

    def set_max_rows(self, rows: int) -> None:
        self._max_rows.set(rows)

    def set_threshold(self, threshold: float) -> None:
        self._threshold.set(threshold)

    def count(self, summary: Summary) -> None:
        """Add what became of more tokens."""
        for layer, count in summary.by_layer(self._num_layers).items():
            for _ in range(count):
                self._depth.observe(layer)
            path = self._on_backbone if layer == self._num_layers else self._on_river
            path.inc(count)
            self._run.inc(layer * count)
            self._skipped.inc((self._num_layers - layer) * count)
        self._held.inc(summary.held)
        self._drafted.inc(summary.drafted)
        self._accepted.inc(summary.accepted)

    def totals(self) -> dict[str, Any]:
        """The body of ``GET /river/stats``, read back from the metrics themselves."""
        samples = _samples()
        layers: dict[str, int] = {}
        below = 0
        for layer in range(1, self._num_layers + 1):
            upto = int(samples.get(("river_exit_layer_bucket", f"{float(layer)}"), 0))
            if upto > below:
                layers[str(layer)] = upto - below
            below = max(below, upto)
        backbone = int(samples.get(("river_tokens_total", "backbone"), 0))
        river = int(samples.get(("river_tokens_total", "river"), 0))
        run = int(samples.get(("river_backbone_layers_total", ""), 0))
        tokens = backbone + river
        return {
            "num_layers": self._num_layers,
            "tokens": tokens,
            "tokens_by_path": {"backbone": backbone, "river": river},
            "backbone_layers": run,
            "skipped_layers": int(samples.get(("river_skipped_layers_total", ""), 0)),
            "held_tokens": int(samples.get(("river_held_tokens_total", ""), 0)),
            "mean_exit_layer": round(run / tokens, 3) if tokens else None,
            "exit_layers": layers,
            "drafted": int(samples.get(("river_drafted_tokens_total", ""), 0)),
            "accepted": int(samples.get(("river_accepted_tokens_total", ""), 0)),
        }


@cache
def river_metrics(num_layers: int) -> RiverMetrics:
    """The process's metrics; Prometheus allows each name once."""
    return RiverMetrics(num_layers)


def _samples() -> dict[tuple[str, str], float]:
    """River's samples by name and label, over all API server processes."""
    return {
        (sample.name, sample.labels.get("le") or sample.labels.get("path") or ""): sample.value
        for metric in get_prometheus_registry().collect()
        if metric.name.startswith("river_")
        for sample in metric.samples
    }
