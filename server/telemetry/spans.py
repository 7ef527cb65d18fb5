"""River's OpenTelemetry span of a request, with the request's river report.

vLLM makes and ends its own span of a request (``llm_request``) in one call inside its output
processor, so nothing can be added to it. Its parent is the span named in the ``traceparent``
header. River's span takes that place, and the header's span becomes the parent of River's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.trace import SpanKind, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Scope

NAME = "river_request"
_W3C = TraceContextTextMapPropagator()  # the format that vLLM reads


@contextmanager
def request_span(
    tracer: Tracer | None, scope: Scope, report: Callable[[], dict[str, Any]]
) -> Iterator[Scope]:
    """Open the span of one request; yields the ASGI scope that names it as the parent.

    Args:
        tracer: None where vLLM exports no spans; the scope is then ``scope`` itself.
        report: returns the response's ``river`` object; its values become the span's attributes
            ``river.NAME``.
    """
    if tracer is None:
        yield scope
        return
    # An instrumented application has read the header already.
    instrumented = get_current_span().get_span_context().is_valid
    parent = None if instrumented else _W3C.extract(Headers(scope=scope))
    with tracer.start_as_current_span(NAME, parent, SpanKind.SERVER) as span:
        headers = MutableHeaders(raw=list(scope["headers"]))
        _W3C.inject(headers)
        try:
            yield {**scope, "headers": headers.raw}
        finally:
            span.set_attributes(_attributes(report()))


def _attributes(report: dict[str, Any]) -> dict[str, Any]:
    """The span attributes of a report: without None, and its exit layers as two lists."""
    flat = {name: value for name, value in report.items() if value is not None}
    if (layers := flat.pop("exit_layers", None)) is not None:
        flat["exit_layers"] = [int(layer) for layer in layers]
        flat["exit_layer_tokens"] = list(layers.values())
    return {f"river.{name}": value for name, value in flat.items()}
