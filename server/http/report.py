"""The ``river`` report, put into a finished response or the last chunk of a stream."""

from __future__ import annotations

import json
from typing import Any

from server.http.exchange import RiverExchange

DONE = b"data: [DONE]"
_FINISHED_RESPONSES = (b"event: response.completed", b"event: response.incomplete")


def add_to_json(body: bytes, exchange: RiverExchange) -> bytes:
    """A complete response body with ``river``, and ``river_trace`` in its choices if asked for."""
    payload = json.loads(body)
    if not isinstance(payload, dict) or ("error" in payload and payload.get("object") is None):
        return body
    if payload.get("status") in ("queued", "in_progress"):
        return body  # a background response, still to be made
    _add(payload, exchange)
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def _add(payload: dict[str, Any], exchange: RiverExchange) -> None:
    payload["river"] = exchange.report()
    if exchange.trace:
        _add_traces(payload, exchange)
        if "choices" not in payload:
            payload["river_trace"] = exchange.whole_trace()


def _add_traces(payload: dict[str, Any], exchange: RiverExchange) -> None:
    for choice in payload.get("choices") or ():
        if choice.get("finish_reason") is not None:
            choice["river_trace"] = exchange.trace_of(choice["index"])


def _add_deltas(payload: dict[str, Any], exchange: RiverExchange) -> bool:
    """Add the exit layers of new tokens to a chunk's choices; whether there were any."""
    added = False
    for choice in payload["choices"]:
        # A chat's first chunks (role, echoed message) hold no token; vLLM leaves the key out.
        layers = exchange.take_unsent(choice["index"]) if "token_ids" in choice else []
        if layers:
            choice["river_trace_delta"] = layers
            added = True
    return added


class StreamReport:
    """Rewrites a server-sent event stream: the last chunk before ``[DONE]`` gets the report.

    A chunk waits for its successor only if it may be the last: a choice has finished, or there is
    none (the usage chunk). Tokens pass without delay. With ``trace`` each chunk also carries the
    exit layers of its own tokens, ``river_trace_delta``.
    """

    def __init__(self, exchange: RiverExchange) -> None:
        self._exchange = exchange
        self._rest = b""
        self._held: dict[str, Any] | None = None

    def feed(self, data: bytes) -> bytes:
        """The bytes to send on after ``data``; an incomplete event waits for its rest."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        return b"".join(self._event(event) for event in events)

    def close(self) -> bytes:
        """The remaining bytes when the stream ends, with or without ``[DONE]``."""
        rest, self._rest = self._rest, b""
        return self._release(last=True) + rest

    def _event(self, event: bytes) -> bytes:
        if event.startswith(DONE):
            return self._release(last=True) + event + b"\n\n"
        if event.startswith(b":"):  # a keep-alive comment says nothing about what follows
            return event + b"\n\n"
        before = self._release(last=False)
        if event.startswith(b"event:"):
            return before + self._responses_event(event) + b"\n\n"
        may_be_last = b'"finish_reason":"' in event or b'"choices":[]' in event
        if not may_be_last and not self._exchange.trace:
            return before + event + b"\n\n"
        payload = _payload(event)
        if payload is None or "choices" not in payload:
            return before + event + b"\n\n"
        if self._exchange.trace and _add_deltas(payload, self._exchange):
            event = _line(payload)
        if may_be_last:
            self._held = payload
            return before
        return before + event + b"\n\n"

    def _responses_event(self, event: bytes) -> bytes:
        """``event``, with the report if it is the Responses API's final one, the whole response."""
        name, _, data = event.partition(b"\n")
        if name.strip() not in _FINISHED_RESPONSES:
            return event
        payload = _payload(data)
        if payload is None or not isinstance(payload.get("response"), dict):
            return event
        _add(payload["response"], self._exchange)
        payload["river"] = payload["response"]["river"]
        return name + b"\n" + _line(payload)

    def _release(self, last: bool) -> bytes:
        payload, self._held = self._held, None
        if payload is None:
            return b""
        if self._exchange.trace:
            _add_traces(payload, self._exchange)
        if last:
            payload["river"] = self._exchange.report()
        return _line(payload) + b"\n\n"


def _payload(event: bytes) -> dict[str, Any] | None:
    try:
        payload = json.loads(event.removeprefix(b"data:"))
    except ValueError:
        return None
    return payload if isinstance(payload, dict) else None


def _line(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
