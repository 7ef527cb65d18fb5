"""River's span of a request, for OpenTelemetry: what became of its tokens.

vLLM makes its own span of a request (``llm_request``) and ends it in one call inside its output
processor, so nothing can be added to it; but its parent is the one that the request's
``traceparent`` header names. River's span takes that place, and has the header's as its own parent.
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
_W3C = TraceContextTextMapPropagator()  # what vLLM reads


@contextmanager
def request_span(
    tracer: Tracer | None, scope: Scope, report: Callable[[], dict[str, Any]]
) -> Iterator[Scope]:
    """Inside, the span of one request; yields the ASGI scope that names it as the parent.

    Args:
        tracer: None where vLLM exports no spans; the scope is then ``scope`` itself.
        report: gives the response's ``river`` object, whose values the span has when it ends, each
            as ``river.NAME``.
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
    """A report in an attribute's types: no None, and no object but as two lists."""
    flat = {name: value for name, value in report.items() if value is not None}
    if (layers := flat.pop("exit_layers", None)) is not None:
        flat["exit_layers"] = [int(layer) for layer in layers]
        flat["exit_layer_tokens"] = list(layers.values())
    return {f"river.{name}": value for name, value in flat.items()}
