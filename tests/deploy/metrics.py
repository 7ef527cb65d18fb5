"""Every metric that a River server can expose, taken from the code that exposes them."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

import promql_parser
from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric

from tests.deploy.files import concrete

KINDS = {"_counter_cls": "counter", "_gauge_cls": "gauge", "_histogram_cls": "histogram"}
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}
OTHERS = {"up", "ALERTS", "http_requests_total"}
"""Prometheus' own, and what tests/server/test_routes.py reads from a server."""


def _series(name: str, kind: str) -> set[str]:
    return {name + suffix for suffix in SUFFIXES.get(kind, ("",))}


def vllm_series() -> set[str]:
    """From the syntax tree of vLLM's logger: importing it would load torch."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None, "vLLM is not installed"
    path = Path(spec.origin).parent / "v1" / "metrics" / "loggers.py"
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            kind = KINDS.get(node.func.attr)
            for keyword in node.keywords if kind else ():
                if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                    found |= _series(str(keyword.value.value), str(kind))
    assert len(found) > 40, "vLLM's logger is written in another way"
    return found


def _families(metrics: list[Metric]) -> set[str]:
    return set().union(*(_series(metric.name, metric.type) for metric in metrics))


def river_series() -> set[str]:
    from server.telemetry.metrics import river_metrics

    river_metrics(4, "tiny", (0,))
    return _families([m for m in REGISTRY.collect() if m.name.startswith("river_")])


def process_series() -> set[str]:
    return _families([m for m in REGISTRY.collect() if m.name.startswith("process_")])


@cache
def known_series() -> frozenset[str]:
    return frozenset(vllm_series() | river_series() | process_series() | OTHERS)


def names_in(expression: str) -> set[str]:
    """The series that a PromQL expression selects, recorded ones included.

    Raises:
        ValueError: it is not PromQL.
    """
    tree = repr(promql_parser.parse(concrete(expression)))
    found = set(re.findall(r'VectorSelector \{\s*name: Some\(\s*"([^"]+)"', tree))
    assert found, f"selects nothing: {expression}"
    return found
