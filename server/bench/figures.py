"""Figures of a comparison: each side's, their ratios with intervals, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import get_args

import numpy as np
from scipy.stats import bootstrap

from server.bench.options import CompareOptions, MetricName
from server.bench.request import Answer, Depths
from server.bench.rounds import SIDES, Comparison, Turn

RESAMPLES = 9999
"""Bootstrap draws; the quantiles then vary by well under the width of an interval."""

FEW_ROUNDS = 10

LENGTH_SHARE = 0.02
"""Above this difference in answer length, E2E and requests/s compare unequal work."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a request in milliseconds, or of a turn per second."""

    unit: str
    of_answer: Callable[[Answer], float | None] | None = None
    of_turn: Callable[[Turn], float | None] | None = None

    def values(self, turns: Sequence[Turn]) -> list[float]:
        """The measured values: one per completed request, or one per turn."""
        if self.of_turn is not None:
            found = [self.of_turn(turn) for turn in turns]
        else:
            assert self.of_answer is not None
            found = [self.of_answer(answer) for turn in turns for answer in _completed(turn)]
        scale = 1.0 if self.of_turn is not None else 1e3
        return [scale * value for value in found if value is not None]

    def ratio(self, a: Turn, b: Turn) -> float | None:
        """Speed-up of B by the medians of the two turns: A / B for times, B / A for rates."""
        first, second = self.values([a]), self.values([b])
        if not first or not second:
            return None
        low, high = (median(second), median(first))
        if self.of_turn is not None:
            low, high = high, low
        return high / low if low > 0 else None


def _completed(turn: Turn) -> list[Answer]:
    return [answer for answer in turn.answers if answer.error is None]


def _requests(turn: Turn) -> float | None:
    return len(_completed(turn)) / turn.seconds


def _tokens(turn: Turn) -> float | None:
    counts = [answer.completion_tokens for answer in _completed(turn)]
    return None if None in counts else sum(n or 0 for n in counts) / turn.seconds


METRICS: dict[MetricName, Metric] = {
    "ttft": Metric("ms", of_answer=lambda answer: answer.first),
    "tpot": Metric("ms", of_answer=lambda answer: answer.tpot),
    "e2e": Metric("ms", of_answer=lambda answer: answer.finished),
    "requests": Metric("1/s", of_turn=_requests),
    "tokens": Metric("output tokens/s", of_turn=_tokens),
}
assert set(METRICS) == set(get_args(MetricName))


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratio of one metric; above 1, B is faster."""

    metric: MetricName
    unit: str
    a: float | None
    """Median of the side in ``unit``, over its completed requests or its turns."""
    b: float | None
    median: float | None
    low: float | None
    high: float | None
    rounds: list[float]


@dataclass(frozen=True, slots=True)
class River:
    """Sums of the river reports in one side's answers."""

    num_layers: int | None
    tokens: int
    """Decode tokens, as the answers count them."""
    mean_exit_layer: float | None
    held: int
    acceptance: float | None
    """Acceptance rate in verified mode: accepted / drafted."""


@dataclass(frozen=True, slots=True)
class Side:
    """Results of one side over all finished rounds."""

    sent: int
    completed: int
    errors: dict[str, int]
    """Number of incomplete requests by reason."""
    output_tokens: int
    percentiles: dict[MetricName, dict[str, float]]
    """p50, p90 and p99 of each measured figure."""
    river: River | None

    @property
    def failed(self) -> int:
        return self.sent - self.completed


@dataclass(frozen=True, slots=True)
class Report:
    """The two sides, their ratios, the verdict and warnings."""

    sides: dict[str, Side]
    ratios: list[Ratio]
    rounds: int
    rounds_counted: int
    """Rounds in which every request of both sides completed."""
    verdicts: list[str]
    """Why the comparison failed; empty if it did not."""
    warnings: list[str]


def interval(
    values: Sequence[float], confidence: float, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """Percentile bootstrap interval of the median; None below two values."""
    if len(values) < 2:
        return None, None
    found = bootstrap(
        (values,),
        np.median,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def measure(options: CompareOptions, comparison: Comparison) -> Report:
    """Figures, verdict and warnings of ``comparison``."""
    whole = [turns for turns in comparison.rounds if all(t.whole for t in turns.values())]
    sides = {name: _side([turns[name] for turns in comparison.rounds]) for name in SIDES}
    ratios = [_ratio(name, comparison.rounds, whole, options) for name in METRICS]
    return Report(
        sides=sides,
        ratios=ratios,
        rounds=len(comparison.rounds),
        rounds_counted=len(whole),
        verdicts=_verdicts(options, sides, ratios, len(whole)),
        warnings=_warnings(options, comparison, sides, len(whole)),
    )


def _side(turns: Sequence[Turn]) -> Side:
    answers = [answer for turn in turns for answer in turn.answers]
    good = [answer for answer in answers if answer.error is None]
    percentiles = {}
    for name, metric in METRICS.items():
        if values := metric.values(turns):
            p50, p90, p99 = map(float, np.percentile(values, (50, 90, 99)))
            percentiles[name] = {"p50": p50, "p90": p90, "p99": p99}
    return Side(
        sent=len(answers),
        completed=len(good),
        errors=dict(Counter(a.error for a in answers if a.error is not None).most_common()),
        output_tokens=sum(answer.completion_tokens or 0 for answer in good),
        percentiles=percentiles,
        river=_river([answer.river for answer in good if answer.river is not None]),
    )


def _river(found: Sequence[Depths]) -> River | None:
    if not found:
        return None
    layers: Counter[int] = Counter()
    for depths in found:
        layers.update(depths.exit_layers)
    drafted = sum(depths.drafted for depths in found)
    return River(
        num_layers=found[0].num_layers,
        tokens=sum(depths.tokens for depths in found),
        mean_exit_layer=sum(n * k for n, k in layers.items()) / layers.total() if layers else None,
        held=sum(depths.held for depths in found),
        acceptance=sum(depths.accepted for depths in found) / drafted if drafted else None,
    )


def _ratio(
    name: MetricName,
    rounds: Sequence[dict[str, Turn]],
    whole: Sequence[dict[str, Turn]],
    options: CompareOptions,
) -> Ratio:
    metric = METRICS[name]
    values = [r for turns in whole if (r := metric.ratio(turns["A"], turns["B"])) is not None]
    a, b = (metric.values([turns[side] for turns in rounds]) for side in SIDES)
    low, high = interval(values, options.comparison.confidence, options.requests.seed)
    return Ratio(
        metric=name,
        unit=metric.unit,
        a=median(a) if a else None,
        b=median(b) if b else None,
        median=median(values) if values else None,
        low=low,
        high=high,
        rounds=values,
    )


def _verdicts(
    options: CompareOptions, sides: dict[str, Side], ratios: list[Ratio], counted: int
) -> list[str]:
    if counted == 0:
        return ["no round in which every request of both sides completed"]
    found = []
    by_name = {ratio.metric: ratio for ratio in ratios}
    gates = options.comparison.fail_below
    for gate in gates:
        value, least = by_name[gate.metric].median, f"{gate.least:g}"
        if value is None:
            found.append(f"{gate.metric}: could not be measured (asked for at least {least})")
        elif value < gate.least:
            found.append(f"{gate.metric}: median ratio {value:.3f} is below {least}")
    a, b = sides["A"].failed, sides["B"].failed
    if gates and b > a:
        found.append(f"B failed {b} requests and A {a}; rounds with failures are not in the ratios")
    return found


def _warnings(
    options: CompareOptions, comparison: Comparison, sides: dict[str, Side], counted: int
) -> list[str]:
    found = []
    rounds = len(comparison.rounds)
    if comparison.interrupted:
        found.append("interrupted: the figures are of the rounds finished by then")
    if counted < rounds:
        found.append(f"{rounds - counted} of {rounds} rounds are not whole, so not in the ratios")
    if counted % 2:
        found.append(f"{counted} rounds: one side went first once more, so that may not cancel out")
    if counted < FEW_ROUNDS:
        found.append(f"{counted} rounds make a rough interval; use at least {FEW_ROUNDS}")
    if comparison.unmeasured_failed:
        found.append(f"{comparison.unmeasured_failed} warm-up requests did not complete")
    tokens = [side.output_tokens / max(1, side.completed) for side in sides.values()]
    if abs(tokens[0] - tokens[1]) > LENGTH_SHARE * max(tokens):
        found.append(
            f"answers differ in length ({tokens[0]:.1f} and {tokens[1]:.1f} tokens): E2E and "
            "requests/s compare unequal work; TPOT and tokens/s are per token"
        )
    if options.a == options.b and not options.requests.cache_salt:
        found.append(
            "A and B are one server: the side asked second finds the prompt in its prefix cache; "
            "--cache-salt (vLLM) prevents it"
        )
    elif comparison.repeats:
        found.append("some prompts were asked more than once: the file is short")
    return found
