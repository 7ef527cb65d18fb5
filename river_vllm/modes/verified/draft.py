"""Makes a step's drafts pass by pass, for each request as long as it pays."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from river_vllm.modes.verified.acceptance import Acceptance
from river_vllm.modes.verified.depth import Depth
from river_vllm.modes.verified.lookup import continuation


@dataclass(slots=True)
class Draft:
    """The draft of one request.

    Attributes:
        row: the request's row in the batch.
        position: of its last token.
        token: its last token, sampled by the backbone; then the last drafted one.
        limit: the most tokens that may be drafted.
        greedy: whether the request takes the likeliest token.
        rate: acceptance rate of its drafted tokens.
        ends: tokens that end the answer.
        first: whether ``token`` is the first of its answer.
        constrained: whether a grammar cuts the draft at the first token that it forbids.
        known: int32, the tokens before ``token``: the prompt's and the answer's.
    """

    request_id: str
    row: int
    position: int
    token: int
    limit: int
    greedy: bool
    rate: float
    ends: Container[int | None] = ()
    first: bool = False
    constrained: bool = False
    known: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    tokens: list[int] = field(default_factory=list)
    confidences: list[float | None] = field(default_factory=list)
    """The river's confidence in each drafted token; None where it was sampled."""
    reach: float = 1.0
    """Probability that all of ``tokens`` are accepted."""
    looked_up: bool = False
    """Whether ``tokens`` are guesses from the text, without a draft pass."""
    first_token: int = field(init=False)
    """The token that the draft begins with."""

    def __post_init__(self) -> None:
        self.first_token = self.token

    @property
    def next_position(self) -> int:
        """Position of the token that the next draft pass reads."""
        return self.position + len(self.tokens)

    @property
    def full(self) -> bool:
        return len(self.tokens) >= self.limit or self.token in self.ends

    def guesses(self, most: int) -> list[int]:
        """Likely next tokens (``lookup.py``), at most ``most`` and as many as may be drafted."""
        room = self.limit - len(self.tokens)
        if min(most, room) <= 0:
            return []
        text = np.concatenate([self.known, [self.first_token, *self.tokens]])
        return continuation(text, min(most, room))

    def add(self, token: int, confidence: float, acceptance: Acceptance) -> None:
        self.reach *= acceptance.likelihood(confidence) if self.greedy else self.rate
        self.confidences.append(confidence if self.greedy else None)
        self.tokens.append(token)
        self.token = token

    def drop(self) -> None:
        """Remove the last token, which does not pay for its row, and end the draft."""
        self.tokens.pop()
        self.confidences.pop()
        self.limit = len(self.tokens)


LEAST_GUESSED = 0.3
"""Acceptance rate of a request's guesses below which it drafts none from its text."""


def look_up(drafts: Sequence[Draft], depth: Depth, acceptance: Acceptance) -> None:
    """Fill the ``drafts`` of one step with guesses from the text, as far as they pay for their
    rows: for steps in which no draft pass pays."""
    drafted = 0
    for draft in drafts:
        rate = reach = acceptance.guess_rate(draft.request_id)
        if rate < LEAST_GUESSED:
            continue
        for token in draft.guesses(draft.limit):
            if draft.full or not depth.worth_verifying(drafted, reach):
                break
            draft.looked_up = True
            draft.tokens.append(token)
            draft.token = token
            draft.confidences.append(None)
            drafted += 1
            reach *= rate


Pass = Callable[[Sequence[Draft]], Sequence[Sequence[tuple[int, float]]]]
"""Runs one draft pass: returns each draft's next tokens, with the river's confidence in each."""


def run(drafts: Sequence[Draft], depth: Depth, acceptance: Acceptance, draft_pass: Pass) -> None:
    """Fill the ``drafts`` of one step by repeated calls of ``draft_pass``."""
    if not depth.price:
        return
    going = [draft for draft in drafts if not draft.full]
    drafted = 0
    while going:
        going = [d for d in going if depth.worth_verifying(drafted, d.reach * d.rate)]
        # ``best_depth`` has weighed the first draft pass. Each further pass is weighed by the
        # river's confidence in the tokens so far.
        if drafted and not depth.worth_drafting(drafted, [d.reach * d.rate for d in going]):
            return
        if not going:
            return
        for draft, found in zip(going, draft_pass(going), strict=True):
            drafted += _take(draft, found, drafted, depth, acceptance)
        going = [draft for draft in going if not draft.full]


def _take(
    draft: Draft,
    found: Sequence[tuple[int, float]],
    drafted: int,
    depth: Depth,
    acceptance: Acceptance,
) -> int:
    """Give ``draft`` the tokens that a pass has found, as far as they pay for their rows.

    Returns:
        How many it took. After one that did not pay the draft is full.
    """
    before = len(draft.tokens)
    for token, confidence in found:
        if draft.full:
            break
        draft.add(token, confidence, acceptance)
        if not depth.worth_verifying(drafted + len(draft.tokens) - before - 1, draft.reach):
            if len(draft.tokens) == 1:
                acceptance.dropped(draft.request_id, draft.reach)
            draft.drop()
            break
    return len(draft.tokens) - before
