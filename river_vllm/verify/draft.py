"""One step's drafts: level by level, each request for as long as it pays."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

from river_vllm.verify.acceptance import Acceptance
from river_vllm.verify.depth import Depth


@dataclass(slots=True)
class Draft:
    """What is drafted for one request.

    Attributes:
        row: the request's row in the batch.
        position: where its last token stands.
        token: its last token, sampled by the backbone; then the last drafted one.
        limit: tokens that may be drafted at most.
        greedy: whether the request takes the likeliest token.
        rate: that a drafted token of it stays, by what became of those before.
        ends: tokens that end the answer.
        first: whether ``token`` is the first of its answer.
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
    tokens: list[int] = field(default_factory=list)
    confidences: list[float | None] = field(default_factory=list)
    """Of each drafted token; None where it was sampled."""
    reach: float = 1.0
    """That all of ``tokens`` stay."""

    @property
    def next_position(self) -> int:
        """Of the token that the next draft step reads."""
        return self.position + len(self.tokens)

    @property
    def full(self) -> bool:
        return len(self.tokens) >= self.limit or self.token in self.ends

    def add(self, token: int, confidence: float, acceptance: Acceptance) -> None:
        self.reach *= acceptance.likelihood(confidence) if self.greedy else self.rate
        self.confidences.append(confidence if self.greedy else None)
        self.tokens.append(token)
        self.token = token

    def drop(self) -> None:
        """Take back the last token: it would not pay for its row."""
        self.tokens.pop()
        self.confidences.pop()


Step = Callable[[Sequence[Draft]], tuple[Sequence[int], Sequence[float]]]
"""Runs one draft step: each draft's next token, and the river's confidence in it."""


def run(drafts: Sequence[Draft], depth: Depth, acceptance: Acceptance, step: Step) -> None:
    """Fill ``drafts``, which are requests of one step, by repeated calls of ``step``."""
    if not depth.price:
        return
    going = [draft for draft in drafts if not draft.full]
    drafted = 0
    while going:
        going = [d for d in going if depth.worth_verifying(drafted, d.reach * d.rate)]
        # The best depth has weighed the first draft pass. Each further one is weighed again, with
        # the confidence that the river has had in the tokens before it.
        if drafted and not depth.worth_drafting(drafted, [d.reach * d.rate for d in going]):
            return
        if not going:
            return
        for draft, token, confidence in zip(going, *step(going), strict=True):
            draft.add(token, confidence, acceptance)
            drafted += 1
        kept = [d for d in going if depth.worth_verifying(drafted - 1, d.reach)]
        for draft in going:
            if draft not in kept:
                draft.drop()
                drafted -= 1
        going = [draft for draft in kept if not draft.full]
