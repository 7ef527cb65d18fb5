"""The figures of one level of load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.bench.lag import ClientLoad
from server.bench.measure.exit_depth import RiverReport, river_report
from server.bench.measure.slo import Goodput, Slo, goodput
from server.bench.measure.statistics import Distribution, distribution
from server.bench.measure.timing import Timing, timing_of
from server.bench.record import Outcome, Record


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests by outcome; ``sent`` is their sum."""

    sent: int
    completed: int
    failed: int
    incomplete: int
    cancelled: int
    interrupted: int

    @property
    def bad(self) -> int:
        return self.failed + self.incomplete

    @property
    def expected(self) -> int:
        """Requests that the client did not cut short itself."""
        return self.completed + self.bad


@dataclass(frozen=True, slots=True)
class Throughput:
    """Completed requests and their tokens, per second of the level."""

    requests_per_s: float
    output_tokens_per_s: float | None
    input_tokens_per_s: float | None
    total_tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of the completed requests that report usage."""

    requests: int
    input: int
    output: int
    asked: int
    """Sum of their ``max_tokens``."""
    per_chunk: float | None
    """Output tokens per chunk that carries output."""


@dataclass(frozen=True, slots=True)
class LevelReport:
    """Latencies in milliseconds; ``None`` is "not measured", never 0."""

    duration_s: float
    counts: Counts
    errors: dict[str, int]
    error_examples: dict[str, str]
    ttft_ms: Distribution | None
    itl_ms: Distribution | None
    tpot_ms: Distribution | None
    e2e_ms: Distribution | None
    chunk_gap_ms: Distribution | None
    itl_basis: dict[str, int]
    """How tokens per chunk were known → requests."""
    send_delay_ms: Distribution | None
    """Open loop: how late requests left."""
    throughput: Throughput | None
    tokens: Tokens | None
    goodput: Goodput | None
    river: RiverReport | None
    max_in_flight: int
    sent_per_s: float | None
    client: ClientLoad | None = None
    warnings: list[str] = field(default_factory=list)


def measure_level(
    records: Sequence[Record], duration: float, slos: Sequence[Slo] = ()
) -> LevelReport:
    """Turn the records of a level, or of one side of a comparison, into figures.

    Args:
        duration: seconds that the records took; throughput is per this.
    """
    completed = [record for record in records if record.completed]
    timings = [timing for record in completed if (timing := timing_of(record)) is not None]
    counts = _counts(records)
    failures = [record for record in records if record.error_class is not None]
    delays = [r.sent - r.scheduled for r in records if r.scheduled is not None]
    tokens = _tokens(completed, timings)
    return LevelReport(
        duration_s=duration,
        counts=counts,
        errors=dict(Counter(str(record.error_class) for record in failures).most_common()),
        error_examples={str(r.error_class): str(r.error) for r in reversed(failures)},
        ttft_ms=_milliseconds([timing.ttft for timing in timings]),
        itl_ms=_milliseconds([gap for timing in timings for gap in timing.itl]),
        tpot_ms=_milliseconds([t.tpot for t in timings if t.tpot is not None]),
        e2e_ms=_milliseconds([timing.e2e for timing in timings]),
        chunk_gap_ms=_milliseconds([gap for timing in timings for gap in timing.chunk_gaps]),
        itl_basis=dict(Counter(timing.basis.value for timing in timings)),
        send_delay_ms=_milliseconds(delays),
        throughput=_throughput(completed, tokens, duration),
        tokens=tokens,
        goodput=goodput(slos, timings, counts.expected, duration),
        river=river_report(record.river for record in completed),
        max_in_flight=_max_in_flight(records),
        sent_per_s=_sent_per_s(records),
    )


def _counts(records: Sequence[Record]) -> Counts:
    by_outcome = Counter(record.outcome for record in records)
    return Counts(len(records), **{outcome.value: by_outcome[outcome] for outcome in Outcome})


def _milliseconds(seconds: Sequence[float]) -> Distribution | None:
    return distribution([value * 1e3 for value in seconds])


def _tokens(completed: Sequence[Record], timings: Sequence[Timing]) -> Tokens | None:
    known = [record for record in completed if record.completion_tokens is not None]
    if not known:
        return None
    output = sum(record.completion_tokens or 0 for record in known)
    chunks = sum(t.output_chunks for t in timings) if len(known) == len(timings) else 0
    return Tokens(
        requests=len(known),
        input=sum(record.prompt_tokens or 0 for record in known),
        output=output,
        asked=sum(record.asked_tokens or 0 for record in known),
        per_chunk=output / chunks if chunks else None,
    )


def _throughput(
    completed: Sequence[Record], tokens: Tokens | None, duration: float
) -> Throughput | None:
    if not completed or duration <= 0:
        return None
    rate = len(completed) / duration
    if tokens is None:
        return Throughput(rate, None, None, None)
    output, given = tokens.output / duration, tokens.input / duration
    return Throughput(rate, output, given, output + given)


def _max_in_flight(records: Sequence[Record]) -> int:
    moves = sorted([(r.sent, 1) for r in records] + [(r.ended, -1) for r in records])
    most = now = 0
    for _, step in moves:
        now += step
        most = max(most, now)
    return most


def _sent_per_s(records: Sequence[Record]) -> float | None:
    times = [record.sent for record in records]
    span = max(times) - min(times) if times else 0.0
    return (len(times) - 1) / span if span > 0 else None
