"""TTFT, ITL, TPOT and end-to-end latency of one completed request.

``formulas`` states the same definitions for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from server.bench.record import Arrival, Record


class TokenBasis(StrEnum):
    """How the tokens of each chunk are known."""

    REPORTED = "usage in every chunk"
    ONE = "one token per chunk"
    AVERAGED = "mean tokens per chunk of the request"
    UNKNOWN = "no usage reported"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    ttft: float
    e2e: float
    tpot: float | None
    """``None`` below two tokens, or where the server reports no usage."""
    basis: TokenBasis
    itl: list[float] = field(default_factory=list)
    chunk_gaps: list[float] = field(default_factory=list)
    output_chunks: int = 0


def timing_of(record: Record) -> Timing | None:
    """The figures of ``record``; ``None`` unless it completed."""
    if not record.completed or record.finish_seconds is None or not record.arrivals:
        return None
    output = [arrival for arrival in record.arrivals if arrival.output]
    ttft = (output or record.arrivals)[0].seconds
    e2e = record.finish_seconds
    tokens = record.completion_tokens
    tpot = (e2e - ttft) / (tokens - 1) if tokens is not None and tokens >= 2 else None
    basis, itl = _inter_token(record.arrivals, output, tokens)
    return Timing(ttft, e2e, tpot, basis, itl, _gaps(output), len(output))


def _inter_token(
    arrivals: Sequence[Arrival], output: Sequence[Arrival], tokens: int | None
) -> tuple[TokenBasis, list[float]]:
    if arrivals and all(arrival.tokens is not None for arrival in arrivals):
        return TokenBasis.REPORTED, _per_token_gaps(arrivals)
    if tokens is None:
        return TokenBasis.UNKNOWN, []
    for chunks in (arrivals, output):
        if len(chunks) == tokens:
            return TokenBasis.ONE, _gaps(chunks)
    if not output:
        return TokenBasis.AVERAGED, []
    mean = tokens / len(output)
    return TokenBasis.AVERAGED, [gap / mean for gap in _gaps(output)]


def _per_token_gaps(arrivals: Sequence[Arrival]) -> list[float]:
    """Each gap, spread evenly over the tokens of the chunk that ends it.

    A chunk that brings no new token ends no gap.
    """
    samples: list[float] = []
    before, tokens = None, 0
    for arrival in arrivals:
        new = (arrival.tokens or 0) - tokens
        if new <= 0:
            continue
        if before is not None:
            samples += [(arrival.seconds - before) / new] * new
        before, tokens = arrival.seconds, tokens + new
    return samples


def _gaps(arrivals: Sequence[Arrival]) -> list[float]:
    times = [arrival.seconds for arrival in arrivals]
    return [after - before for before, after in pairwise(times)]
