"""What is kept of one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a request ended; only ``COMPLETED`` ones enter latencies and throughput."""

    COMPLETED = "completed"
    FAILED = "failed"
    """HTTP error, no connection, time-out, error object in the stream, nonsense."""
    INCOMPLETE = "incomplete"
    """The stream began and ended without ``finish_reason`` or without ``[DONE]``."""
    CANCELLED = "cancelled"
    """The client left on purpose (``--cancel-rate``)."""
    INTERRUPTED = "interrupted"
    """In flight when the run was interrupted."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A chunk with a choice, as it arrived."""

    seconds: float
    """Since the request was sent."""
    output: bool
    """It carries text, reasoning or a tool call."""
    tokens: int | None = None
    """Completion tokens so far, where the server says so in every chunk."""


@dataclass(slots=True)
class Record:
    """One request: times in seconds on the client's monotonic clock."""

    index: int
    sent: float
    scheduled: float | None = None
    """When an open loop wanted it sent."""
    asked_tokens: int | None = None
    """``max_tokens`` of the request."""
    outcome: Outcome = Outcome.FAILED
    error_class: str | None = None
    """Short and countable, such as ``HTTP 503``."""
    error: str | None = None
    ended: float = 0.0
    """When the client was done with it, however it ended."""
    arrivals: list[Arrival] = field(default_factory=list)
    finish_seconds: float | None = None
    """Since it was sent, of the chunk with ``finish_reason``."""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    river: dict[str, Any] | None = None

    @property
    def completed(self) -> bool:
        return self.outcome is Outcome.COMPLETED

    def fail(self, error_class: str, error: str, outcome: Outcome = Outcome.FAILED) -> None:
        self.outcome, self.error_class, self.error = outcome, error_class, error
