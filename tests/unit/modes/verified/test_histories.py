"""Simulated servers: whatever became of earlier drafts, drafting is never dear for long, and comes
back when it pays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from river_vllm.costs import Costs
from river_vllm.modes.verified.depth import Acceptance, best_depth
from river_vllm.modes.verified.draft import Draft, run

AVX512 = Costs.fixed(
    {
        "backbone": {1: 142.0, 4: 142.0, 8: 152.0, 16: 202.0, 32: 327.0},
        "draft": {1: 35.0, 2: 35.0, 4: 38.0, 8: 55.0, 16: 89.0, 32: 165.0},
    }
)
"""The 1.5B, measured on two cores, in milliseconds."""
AVX2 = Costs.fixed(
    {
        "backbone": {1: 200.0, 2: 375.0, 4: 720.0, 8: 1415.0},
        "verify": {1: 183.0, 2: 195.0, 4: 217.0, 5: 242.0, 8: 421.0},
        "draft": {1: 38.0, 2: 43.0, 4: 61.0, 8: 109.0},
    }
)
"""The same without AVX-512, scaled from the times of one projection."""
DEAR_ROWS = Costs.fixed(
    {"backbone": {1: 100.0, 2: 140.0, 4: 220.0, 8: 380.0}, "draft": {1: 20.0, 2: 25.0, 8: 60.0}}
)
"""A row more of a verifying pass takes longer than a draft."""
CURVES = {"avx512": AVX512, "avx2": AVX2, "dear rows": DEAR_ROWS}
MOST = 4
FEW_HUNDRED = 500


class Text(NamedTuple):
    """Drafted tokens of which a share is kept, and how sure the river is of them at least and at
    most."""

    kept: float
    unsure: float = 0.97
    sure: float = 0.97


class Served(NamedTuple):
    """By step: tokens of all requests, seconds, and seconds if nothing had been drafted."""

    tokens: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    without: npt.NDArray[np.float64]

    def ratio(self, start: int, end: int) -> float:
        """Time of the tokens from ``start`` to ``end`` against drafting nothing."""
        said = np.cumsum(self.tokens)
        these = (said > start) & (said <= end)
        return float(self.seconds[these].sum() / self.without[these].sum())

    def worst(self, end: int) -> float:
        """The highest ratio of ``FEW_HUNDRED`` tokens in a row, up to token ``end``."""
        starts = range(0, end - FEW_HUNDRED, FEW_HUNDRED // 10)
        return max(self.ratio(start, start + FEW_HUNDRED) for start in starts)


def serve(costs: Costs, phases: Sequence[tuple[Sequence[Text], int]], answer: int = 200) -> Served:
    """What a server does.

    Args:
        phases: the texts of the requests that run at the same time, and how many tokens they have
            together before others come.
        answer: tokens of each request.
    """
    chance, acceptance, names = np.random.default_rng(0), Acceptance(), count()
    steps = []
    for texts, tokens in phases:
        # The first requests do not end in the same step.
        left = [answer * (row + 1) // len(texts) for row in range(len(texts))]
        ids = [str(next(names)) for _ in texts]
        while tokens > 0:
            rates = [acceptance.rate(name) for name in ids]
            drafts = [
                Draft(ids[row], row, 0, 0, min(MOST, left[row] - 1), greedy=True, rate=rates[row])
                for row in range(len(texts))
            ]
            seconds, fates = _draft(costs, drafts, texts, acceptance, chance)
            seconds += costs.verifying(sum(1 + len(draft.tokens) for draft in drafts))
            made = 0
            for row, draft in enumerate(drafts):
                kept = [*fates[row][: len(draft.tokens)], False].index(False)
                if draft.tokens:
                    acceptance.verified(ids[row], draft.confidences, kept)
                made += kept + 1
                left[row] -= kept + 1
                if left[row] <= 0:
                    acceptance.forget([ids[row]])
                    ids[row], left[row] = str(next(names)), answer
            tokens -= made
            steps.append((made, seconds, costs.verifying(len(texts)) * made / len(texts)))
        acceptance.forget(ids)
    return Served(*np.array(steps).T)


def _draft(
    costs: Costs,
    drafts: Sequence[Draft],
    texts: Sequence[Text],
    acceptance: Acceptance,
    chance: np.random.Generator,
) -> tuple[float, list[list[bool]]]:
    """Fill ``drafts`` as the proposer does; the seconds that it took, and by request which of its
    tokens the backbone will keep."""
    seconds = 0.0
    fates: list[list[bool]] = [[] for _ in drafts]

    def draft_pass(going: Sequence[Draft]) -> list[list[tuple[int, float]]]:
        nonlocal seconds
        seconds += costs.seconds("draft", len(going))
        for draft in going:
            fates[draft.row].append(bool(chance.random() < texts[draft.row].kept))
        return [[(1, chance.uniform(*texts[draft.row][1:]))] for draft in going]

    acceptance.fade()
    depth = best_depth(costs, [draft.rate for draft in drafts], [draft.limit for draft in drafts])
    run(drafts, depth, acceptance, draft_pass)
    return seconds, fates


BAD, FAIR, GOOD = Text(0.02), Text(0.6), Text(0.9)


@pytest.mark.parametrize(
    ("curve", "users", "bad", "tokens"),
    [
        ("avx2", 1, BAD, 20_000),
        ("avx512", 4, BAD, 20_000),
        ("avx512", 1, Text(0.02, 0.2, 1.0), 3_000),
        ("avx2", 1, Text(0.02, 0.2, 1.0), 3_000),
        ("dear rows", 1, Text(0.5, 0.2, 1.0), 3_000),
    ],
)
def test_bad_drafts_cost_little_and_good_ones_come_back(
    curve: str, users: int, bad: Text, tokens: int
) -> None:
    good = [bad._replace(kept=0.9)] * users
    found = serve(CURVES[curve], [([bad] * users, tokens), (good, 2_000)])
    assert found.worst(tokens) <= 1.03
    fresh = serve(CURVES[curve], [(good, 2_000)])
    assert found.ratio(tokens + 500, tokens + 2_000) <= 1.05 * fresh.ratio(500, 2_000)


@pytest.mark.parametrize("curve", ["avx512", "avx2"])
@pytest.mark.parametrize(
    "phases",
    [
        pytest.param([([GOOD], 600), ([BAD], 600)] * 3, id="good and bad by turns"),
        pytest.param([([FAIR], 1_000), ([BAD], 600), ([GOOD], 600)], id="from fair to bad"),
        pytest.param([([BAD, GOOD, GOOD, BAD], 1_500), ([BAD] * 2, 1_000)], id="beside others"),
    ],
)
@pytest.mark.parametrize("answer", [50, 300])
def test_no_change_of_texts_is_dear_for_long(
    curve: str, phases: list[tuple[list[Text], int]], answer: int
) -> None:
    assert serve(CURVES[curve], phases, answer).worst(sum(tokens for _, tokens in phases)) <= 1.03


def test_drafts_too_unsure_for_their_row_are_not_made_for_ever() -> None:
    """A token that is dropped has cost its draft pass and is never verified."""
    unsure = Text(0.5, 0.25, 0.25)
    assert serve(DEAR_ROWS, [([unsure], 2_000)]).worst(2_000) <= 1.03
