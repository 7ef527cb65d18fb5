"""From rounds to ratios: median, confidence interval, verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from server.bench.compare.bootstrap import median_interval
from server.bench.compare.rounds import SIDES, Comparison
from server.bench.load import LevelRun
from server.bench.measure.level import LevelReport, Throughput, measure_level
from server.bench.measure.statistics import Distribution
from server.bench.measure.warnings import client_warnings
from server.bench.settings import CompareSettings

_LENGTH_SHARE = 0.02
"""Answers that differ more than this in length make E2E and requests/s compare unequal work."""

_FEW_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that both sides have in every round."""

    name: str
    unit: str
    read: Callable[[LevelReport], float | None]
    smaller_is_better: bool

    def ratio(self, a: LevelReport, b: LevelReport) -> float | None:
        """How many times faster B is."""
        first, second = self.read(a), self.read(b)
        if not self.smaller_is_better:
            first, second = second, first
        return first / second if first and second else None


def _median_of(field: str) -> Callable[[LevelReport], float | None]:
    def read(report: LevelReport) -> float | None:
        values: Distribution | None = getattr(report, field)
        return values.p50 if values else None

    return read


def _rate(field: str) -> Callable[[LevelReport], float | None]:
    def read(report: LevelReport) -> float | None:
        rate: Throughput | None = report.throughput
        value: float | None = getattr(rate, field) if rate else None
        return value

    return read


METRICS = (
    Metric("ttft", "ms", _median_of("ttft_ms"), True),
    Metric("itl", "ms", _median_of("itl_ms"), True),
    Metric("tpot", "ms", _median_of("tpot_ms"), True),
    Metric("e2e", "ms", _median_of("e2e_ms"), True),
    Metric("requests", "1/s", _rate("requests_per_s"), False),
    Metric("tokens", "output tokens/s", _rate("output_tokens_per_s"), False),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Above 1, B is faster."""

    metric: str
    unit: str
    a: float | None
    """Over all completed requests of the side, in ``unit``."""
    b: float | None
    median: float | None
    low: float | None
    high: float | None
    rounds: list[float]


@dataclass(frozen=True, slots=True)
class CompareReport:
    """The two sides, their ratios, and what to think of them."""

    sides: dict[str, LevelReport]
    ratios: list[Ratio]
    rounds: int
    rounds_counted: int
    verdicts: list[str]
    """Why the comparison failed; empty if it did not."""
    warnings: list[str]


def measure_comparison(settings: CompareSettings, comparison: Comparison) -> CompareReport:
    """Figures, verdict and warnings of ``comparison``."""
    whole = [item for item in comparison.rounds if item.whole]
    pairs = [(_report([item.sides["A"]]), _report([item.sides["B"]])) for item in whole]
    sides = {
        side: _report([item.sides[side] for item in comparison.rounds if side in item.sides])
        for side in SIDES
    }
    ratios = [_ratio(metric, pairs, sides, settings) for metric in METRICS]
    return CompareReport(
        sides=sides,
        ratios=ratios,
        rounds=len(comparison.rounds),
        rounds_counted=len(whole),
        verdicts=_verdicts(settings, sides, ratios, len(whole)),
        warnings=_warnings(settings, comparison, sides, len(whole)),
    )


def _report(runs: Sequence[LevelRun]) -> LevelReport:
    records = [record for run in runs for record in run.records]
    report = measure_level(records, sum(run.duration for run in runs))
    return replace(report, sent_per_s=None)


def _ratio(
    metric: Metric,
    pairs: Sequence[tuple[LevelReport, LevelReport]],
    sides: dict[str, LevelReport],
    settings: CompareSettings,
) -> Ratio:
    values = [ratio for a, b in pairs if (ratio := metric.ratio(a, b)) is not None]
    seed = f"{settings.requests.seed}/bootstrap/{metric.name}"
    low, high = median_interval(values, settings.confidence, seed) or (None, None)
    return Ratio(
        metric=metric.name,
        unit=metric.unit,
        a=metric.read(sides["A"]),
        b=metric.read(sides["B"]),
        median=median(values) if values else None,
        low=low,
        high=high,
        rounds=values,
    )


def _verdicts(
    settings: CompareSettings, sides: dict[str, LevelReport], ratios: list[Ratio], counted: int
) -> list[str]:
    if counted == 0:
        return ["no round in which every request of both sides completed"]
    found = []
    by_name = {ratio.metric: ratio for ratio in ratios}
    for gate in settings.gates:
        value, least = by_name[gate.metric].median, f"{gate.least:g}"
        if value is None:
            found.append(f"{gate.metric}: could not be measured (asked for at least {least})")
        elif value < gate.least:
            found.append(f"{gate.metric}: median ratio {value:.3f} is below {least}")
    a, b = sides["A"].counts.bad, sides["B"].counts.bad
    if settings.gates and b > a:
        found.append(f"B failed {b} requests and A {a}; rounds with failures are not in the ratios")
    return found


def _warnings(
    settings: CompareSettings,
    comparison: Comparison,
    sides: dict[str, LevelReport],
    counted: int,
) -> list[str]:
    found = []
    rounds = len(comparison.rounds)
    if comparison.interrupted:
        found.append("interrupted: the figures are of the rounds finished by then")
    if counted < rounds:
        lost = rounds - counted
        found.append(f"{lost} of {rounds} rounds are not whole, so not in the ratios")
    if counted < _FEW_ROUNDS:
        found.append(f"{counted} rounds make a rough interval; use at least {_FEW_ROUNDS}")
    if comparison.warmup_failed:
        found.append(f"{comparison.warmup_failed} warm-up requests did not complete")
    tokens = [report.tokens.output for report in sides.values() if report.tokens]
    if len(tokens) == len(SIDES) and abs(tokens[0] - tokens[1]) > _LENGTH_SHARE * max(tokens):
        found.append(
            f"answers differ in length ({tokens[0]} and {tokens[1]} tokens): E2E and requests/s "
            "compare unequal work; TPOT, ITL and tokens/s are per token"
        )
    same = settings.a.base == settings.b.base
    if same and not settings.requests.body.cache_salt:
        found.append(
            "A and B are one server: the side asked second finds the prompt in its prefix cache; "
            "--cache-salt (vLLM) prevents it"
        )
    elif settings.requests.dataset.repeats(rounds * settings.block):
        found.append("some prompts were asked in more than one round: the dataset is short")
    found += client_warnings(comparison.client, sides["A"].chunk_gap_ms)
    return found
