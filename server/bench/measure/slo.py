"""Service-level objectives and goodput."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from server.bench.errors import BenchError
from server.bench.measure.statistics import percentile
from server.bench.measure.timing import Timing

ITL_SLO_PERCENTILE = 95
"""An ``itl`` objective looks at this percentile of the request's own ITL samples."""


@dataclass(frozen=True, slots=True)
class Slo:
    """An upper bound, in milliseconds, that each request has to keep."""

    metric: str
    limit_ms: float

    def met_by(self, timing: Timing) -> bool:
        """A figure that the request does not have is not met: a one-token answer has no TPOT."""
        value = METRICS[self.metric](timing)
        return value is not None and value * 1e3 <= self.limit_ms


def _itl(timing: Timing) -> float | None:
    return percentile(sorted(timing.itl), ITL_SLO_PERCENTILE) if timing.itl else None


METRICS = {
    "ttft": lambda timing: timing.ttft,
    "itl": _itl,
    "tpot": lambda timing: timing.tpot,
    "e2e": lambda timing: timing.e2e,
}


def parse_slo(text: str) -> Slo:
    """``METRIC:MILLISECONDS``, such as ``ttft:200``.

    Raises:
        BenchError: unknown metric, or not a positive number.
    """
    metric, _, number = text.partition(":")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if metric not in METRICS or not 0 < limit < math.inf:
        allowed = "|".join(METRICS)
        raise BenchError(f"expected ({allowed}):MILLISECONDS above 0, such as ttft:200")
    return Slo(metric, limit)


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests that kept every objective."""

    slos_ms: dict[str, float]
    good: int
    requests_per_s: float
    share: float
    """Of all requests sent, without the ones that the client itself cut short."""


def goodput(
    slos: Sequence[Slo], timings: Sequence[Timing], expected: int, duration: float
) -> Goodput | None:
    """``None`` where no objective is set or nothing completed.

    Args:
        timings: of the completed requests.
        expected: requests that should have completed, failures among them.
        duration: seconds.
    """
    if not slos or not timings or duration <= 0:
        return None
    good = sum(all(slo.met_by(timing) for slo in slos) for timing in timings)
    limits = {slo.metric: slo.limit_ms for slo in slos}
    return Goodput(limits, good, good / duration, good / expected)
