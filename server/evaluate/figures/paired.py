"""Two sides on the same problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from server.evaluate.figures.statistics import mcnemar_exact, paired_interval
from server.evaluate.problem import Result, Verdict


@dataclass(frozen=True, slots=True)
class Paired:
    """What changes from A to B, over problems that both sides answered."""

    pairs: int
    both_right: int
    both_wrong: int
    only_a: list[str]
    """Problems that A alone solves."""
    only_b: list[str]
    difference: float
    """Accuracy of B minus that of A, a share."""
    low: float
    high: float
    p_value: float
    """Exact McNemar test, two-sided."""
    identical: int
    """Pairs with the same output."""
    compared_by: Literal["tokens", "text"]
    verdicts: list[str] = field(default_factory=list)
    """Why the comparison failed."""


def pair(
    a: Sequence[Result], b: Sequence[Result], confidence: float, max_loss: float | None = None
) -> Paired | None:
    """Compare by problem; ``None`` if a request of either side failed or no pair is whole.

    Args:
        max_loss: points of accuracy that B may lose.
    """
    if any(item.failed for item in (*a, *b)):
        return None
    others = {item.id: item for item in b if item.verdict is not None}
    pairs = [(one, others[one.id]) for one in a if one.verdict is not None and one.id in others]
    if not pairs:
        return None
    only_a = [one.id for one, two in pairs if _right(one.verdict) > _right(two.verdict)]
    only_b = [one.id for one, two in pairs if _right(one.verdict) < _right(two.verdict)]
    both = sum(_right(one.verdict) and _right(two.verdict) for one, two in pairs)
    low, high = paired_interval(len(only_a), len(only_b), len(pairs), confidence)
    by_tokens = all(one.token_ids is not None for both_ in pairs for one in both_)
    return Paired(
        pairs=len(pairs),
        both_right=both,
        both_wrong=len(pairs) - both - len(only_a) - len(only_b),
        only_a=only_a,
        only_b=only_b,
        difference=(len(only_b) - len(only_a)) / len(pairs),
        low=low,
        high=high,
        p_value=mcnemar_exact(len(only_a), len(only_b)),
        identical=sum(_same(one, two, by_tokens) for one, two in pairs),
        compared_by="tokens" if by_tokens else "text",
        verdicts=list(_verdicts(len(only_a) - len(only_b), len(pairs), max_loss)),
    )


def _right(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.correct


def _same(one: Result, two: Result, by_tokens: bool) -> bool:
    return one.token_ids == two.token_ids if by_tokens else one.text == two.text


def _verdicts(lost: int, pairs: int, max_loss: float | None) -> Sequence[str]:
    if max_loss is None or 100 * lost <= max_loss * pairs:
        return []
    return [f"B loses {100 * lost / pairs:.2f} points, more than --max-loss {max_loss:g}"]
