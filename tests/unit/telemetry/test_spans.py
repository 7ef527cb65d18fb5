"""The span of a request, between the client's and vLLM's."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

from server.telemetry.spans import request_span

TRACE, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = [(b"accept", b"*/*"), (b"traceparent", f"00-{TRACE}-{CLIENT}-01".encode())]
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
        self.tracer: Tracer = provider.get_tracer("test")

    def first(self) -> ReadableSpan:
        """The first that ended."""
        return self._exporter.get_finished_spans()[0]


@pytest.fixture
def spans() -> Spans:
    return Spans()


def report() -> dict[str, Any]:
    return REPORT


def ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def test_it_stands_between_the_clients_span_and_vllms(spans: Spans) -> None:
    scope = {"type": "http", "headers": HEADERS}
    with request_span(spans.tracer, scope, report) as inner:
        assert inner["type"] == "http"
    span = spans.first()
    trace, own = ids(span)
    assert trace == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == CLIENT
    assert dict(inner["headers"]) == {
        b"accept": b"*/*",
        b"traceparent": f"00-{trace}-{own}-01".encode(),
    }
    assert scope["headers"] == HEADERS


def test_an_instrumented_applications_span_is_the_parent(spans: Spans) -> None:
    with (
        spans.tracer.start_as_current_span("outer") as outer,
        request_span(spans.tracer, {"headers": HEADERS}, report),
    ):
        pass
    inner = spans.first()
    assert inner.parent is not None
    assert inner.parent.span_id == outer.get_span_context().span_id


def test_the_report_becomes_attributes_at_the_end_also_of_a_failure(spans: Spans) -> None:
    with (
        pytest.raises(ConnectionError),
        request_span(spans.tracer, {"headers": []}, report),
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
    with request_span(None, scope, report) as inner:
        assert inner is scope
