"""A receiver of OpenTelemetry's traces over HTTP."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ENVIRONMENT = {
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds between exports; 5,000 by default
}
"""Of a process that exports to it."""


@dataclass(frozen=True, slots=True)
class Span:
    id: str
    parent: str
    attributes: dict[str, Any]


class OtlpReceiver:
    """Serves until the block ends."""

    def __init__(self) -> None:
        self._spans: list[Any] = []
        received = self._spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = ExportTraceServiceRequest.FromString(body)
                scopes = (scope for one in request.resource_spans for scope in one.scope_spans)
                received.extend(span for scope in scopes for span in scope.spans)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of_trace(self, trace: str) -> dict[str, Span]:
        """The spans of one trace by their names."""
        return {
            span.name: Span(
                span.span_id.hex(),
                span.parent_span_id.hex(),
                {entry.key: _plain(entry.value) for entry in span.attributes},
            )
            for span in list(self._spans)
            if span.trace_id.hex() == trace
        }


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    return getattr(value, kind)
