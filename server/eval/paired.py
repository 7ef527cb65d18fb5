"""Paired comparison of two sides on the same problems, from the samples of lm-eval."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from scipy.stats import binomtest, norm, ttest_1samp

from river_vllm.errors import RiverError

_FILE = re.compile(r"samples_(?P<task>.+)_\d{4}-\d\d-\d\dT[^_]+\.jsonl")


@dataclass(frozen=True, slots=True)
class Sample:
    """One problem with its answer and metrics."""

    id: str
    asked: tuple[str, str]
    """Hashes of the problem and of its prompt."""
    answer: Any
    metrics: dict[str, float]


Samples = dict[tuple[str, str], dict[int, Sample]]
"""By task and filter, then by lm-eval's number of the problem."""


def read_samples(folder: Path) -> Samples:
    """The samples of the only run in ``folder`` or below it.

    Raises:
        RiverError: there is no run, a task has two, or a file is not lm-eval's.
    """
    found: Samples = {}
    tasks: set[str] = set()
    for file in sorted(folder.rglob("samples_*.jsonl")):
        match = _FILE.fullmatch(file.name)
        if match is None:
            continue
        if match["task"] in tasks:
            raise RiverError(f"{str(folder)!r}: expected one run of {match['task']}, found two")
        tasks.add(match["task"])
        # Not splitlines(): an answer may hold Unicode's other line separators.
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    samples = found.setdefault((match["task"], row["filter"]), {})
                    samples[row["doc_id"]] = _sample(row)
                except (ValueError, KeyError, TypeError) as error:
                    raise RiverError(
                        f"{str(file)!r} line {number}: expected a sample of lm-eval ({error!r})"
                    ) from None
    if not found:
        raise RiverError(f"{str(folder)!r}: expected a folder with lm-eval's samples_TASK_….jsonl")
    return found


def _sample(row: dict[str, Any]) -> Sample:
    values = {name: row[name] for name in row["metrics"]}
    return Sample(
        id=str(row["doc"].get("id", row["doc_id"])),
        asked=(row["doc_hash"], row["prompt_hash"]),
        answer=row["resps"],
        metrics={
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and isfinite(value)
        },
    )


METHODS = {
    "p_value": "exact McNemar test, two-sided: a sign test of the problems that differ",
    "interval": "of shares: adjusted Wald for pairs (Bonett and Price 2012); of other means: "
    "Student's t of the differences",
}


@dataclass(frozen=True, slots=True)
class Paired:
    """Both sides' values of one metric of a task, with one filter of lm-eval."""

    task: str
    filter: str
    metric: str
    problems: int
    is_share: bool
    """Whether each problem counts 0 or 1."""
    a: float
    b: float
    difference: float
    """B minus A."""
    low: float
    high: float
    only_a: list[str]
    """Problems on which A is higher: B's losses, where higher is better."""
    only_b: list[str]
    p_value: float
    identical: int
    """Problems with the same answer on both sides, character by character."""


def pair(a: Samples, b: Samples, confidence: float) -> list[Paired]:
    """One comparison per task, filter and metric that both sides have for each problem.

    Raises:
        RiverError: the sides' problems or prompts differ, or no metric covers each problem.
    """
    found = []
    for key in sorted(a.keys() | b.keys()):
        one, two = a.get(key, {}), b.get(key, {})
        numbers = sorted(one.keys() | two.keys())
        pairs = [(one[n], two[n]) for n in numbers if n in one and n in two]
        if len(pairs) < len(numbers):
            raise RiverError(
                f"{key[0]} ({key[1]}): A has {len(one)} problems and B {len(two)}, "
                f"{len(pairs)} of them the same: expected the same on both sides"
            )
        for left, right in pairs:
            if left.asked != right.asked:
                raise RiverError(f"{key[0]}: problem {left.id} has another text or prompt in B")
        for metric in pairs[0][0].metrics:
            if all(metric in sample.metrics for both in pairs for sample in both):
                found.append(_pair(*key, metric, pairs, confidence))
    if not found:
        raise RiverError(
            "there is nothing to compare: no metric has a number for each problem on both sides"
        )
    return found


def _pair(
    task: str, filter: str, metric: str, pairs: list[tuple[Sample, Sample]], confidence: float
) -> Paired:
    values = [(one.metrics[metric], two.metrics[metric]) for one, two in pairs]
    changes = [two - one for one, two in values]
    only_a = [one.id for (one, _), change in zip(pairs, changes, strict=True) if change < 0]
    only_b = [one.id for (one, _), change in zip(pairs, changes, strict=True) if change > 0]
    flips = len(only_a) + len(only_b)
    is_share = all(value in (0, 1) for both in values for value in both)
    low, high = (
        _interval_of_shares(len(only_a), len(only_b), len(pairs), confidence)
        if is_share
        else _interval_of_means(changes, confidence)
    )
    return Paired(
        task=task,
        filter=filter,
        metric=metric,
        problems=len(pairs),
        is_share=is_share,
        a=math.fsum(one for one, _ in values) / len(pairs),
        b=math.fsum(two for _, two in values) / len(pairs),
        difference=math.fsum(changes) / len(pairs),
        low=low,
        high=high,
        only_a=only_a,
        only_b=only_b,
        p_value=float(binomtest(len(only_a), flips).pvalue) if flips else 1.0,
        identical=sum(one.answer == two.answer for one, two in pairs),
    )


def _interval_of_shares(
    only_a: int, only_b: int, pairs: int, confidence: float
) -> tuple[float, float]:
    """p − q ± z·√((p + q − (p − q)²)/(n + 2)), with p = (only_b + 1)/(n + 2) and q likewise of A.

    Without a flip the interval still has a width.
    """
    n = pairs + 2
    p, q = (only_b + 1) / n, (only_a + 1) / n
    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt((p + q - (p - q) ** 2) / n)
    return max(-1.0, p - q - half), min(1.0, p - q + half)


def _interval_of_means(changes: list[float], confidence: float) -> tuple[float, float]:
    if len(set(changes)) == 1:
        return changes[0], changes[0]
    interval = ttest_1samp(changes, 0).confidence_interval(confidence)
    return float(interval.low), float(interval.high)
