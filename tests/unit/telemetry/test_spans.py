"""The span of a request; tests/server/test_one_flag.py has it between the client's and vLLM's."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.telemetry.spans import request_span

HEADERS = [(b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
REPORT = {
    "enabled": True,
    "mode": "exit",
    "mean_exit_layer": 4.5,
    "exit_layers": {"3": 1, "6": 1},
    "acceptance": None,
}


class Spans:
    """What is exported, and the tracer whose spans it is."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")

    def first(self) -> ReadableSpan:
        """The first that ended."""
        return self._exporter.get_finished_spans()[0]


@pytest.fixture
def spans() -> Spans:
    return Spans()


def test_an_instrumented_applications_span_is_the_parent(spans: Spans) -> None:
    with (
        spans.tracer.start_as_current_span("outer") as outer,
        request_span(spans.tracer, {"headers": HEADERS}, lambda: REPORT),
    ):
        pass
    inner = spans.first()
    assert inner.parent is not None
    assert inner.parent.span_id == outer.get_span_context().span_id


def test_the_report_becomes_attributes_at_the_end_also_of_a_failure(spans: Spans) -> None:
    with (
        pytest.raises(ConnectionError),
        request_span(spans.tracer, {"headers": []}, lambda: REPORT),
    ):
        raise ConnectionError
    assert dict(spans.first().attributes or {}) == {
        "river.enabled": True,
        "river.mode": "exit",
        "river.mean_exit_layer": 4.5,
        "river.exit_layers": (3, 6),
        "river.exit_layer_tokens": (1, 1),
    }


def test_without_a_tracer_the_scope_stays() -> None:
    scope = {"headers": HEADERS}
    with request_span(None, scope, lambda: REPORT) as inner:
        assert inner is scope
