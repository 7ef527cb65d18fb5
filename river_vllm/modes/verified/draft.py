"""Makes a step's drafts pass by pass, for each request as long as it pays.

A draft pass picks each draft's next token from the river's logits. Prompt lookup adds guesses: the
tokens after an earlier occurrence of the text's last tokens (Saxena 2023, as in vLLM's
``v1/spec_decode/ngram_proposer.py``). Guesses are additional rows of a draft pass, or of the
verifying pass after the last draft. Both run in any case, so a wrong guess costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from river_vllm.modes.verified.depth import Acceptance, Depth

SHORTEST, LONGEST = 2, 16
"""How many of the text's last tokens prompt lookup compares at least, and at most."""
GREEDY = 1e-5
"""Temperatures below it are greedy (vLLM ``v1/sample/sampler.py``, ``_SAMPLING_EPS``)."""


Found = tuple[int, float]
"""A token, and the river's confidence in it."""


class Guess(NamedTuple):
    """Likely next tokens of a text, and how many of its last tokens preceded them before."""

    tokens: list[int]
    match: int


@dataclass(slots=True)
class Draft:
    """The draft of one request.

    Attributes:
        row: the request's row in the batch.
        position: of its last token.
        sampled: its last token, sampled by the backbone.
        limit: the most tokens that may be drafted.
        greedy: whether the request takes the likeliest token.
        rate: acceptance rate of its drafted tokens.
        ends: tokens that end the answer.
        first: whether ``sampled`` is the first of its answer.
        constrained: whether a grammar cuts the draft at the first token that it forbids.
        known: int32, the tokens before ``sampled``: the prompt's and the answer's.
        confidences: the river's confidence in each of its ``tokens``; None where it was sampled.
            Tokens after these are guesses from the text that no draft pass has read.
        reach: probability that all of ``tokens`` are accepted.
        match: how many tokens before the guesses among ``tokens`` were compared.
    """

    request_id: str
    row: int
    position: int
    sampled: int
    limit: int
    greedy: bool
    rate: float
    ends: Container[int | None] = ()
    first: bool = False
    constrained: bool = False
    known: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    tokens: list[int] = field(default_factory=list)
    confidences: list[float | None] = field(default_factory=list)
    reach: float = 1.0
    match: int = 0

    @property
    def guessed(self) -> int:
        """How many of ``tokens``, the last ones, are guesses that no draft pass has read."""
        return len(self.tokens) - len(self.confidences)

    @property
    def token(self) -> int:
        """The token that the next draft pass reads."""
        return self.tokens[-1] if self.tokens else self.sampled

    @property
    def next_position(self) -> int:
        return self.position + len(self.tokens)

    @property
    def full(self) -> bool:
        return len(self.tokens) >= self.limit or self.token in self.ends

    def guess(self, most: int) -> Guess:
        """Likely next tokens by prompt lookup, at most ``most`` and as many as may be drafted."""
        room = self.limit - len(self.tokens)
        if min(most, room) <= 0:
            return Guess([], 0)
        text = np.concatenate([self.known, [self.sampled, *self.tokens]])
        return continuation(text, min(most, room))

    def take(
        self, found: Sequence[Found], drafted: int, depth: Depth, acceptance: Acceptance
    ) -> int:
        """Take the tokens that a pass has found as far as they pay for their rows; returns how
        many. After one that did not pay the draft is full.

        ``drafted`` counts the tokens of the step's drafts so far.
        """
        before = len(self.tokens)
        for token, confidence in found:
            if self.full:
                break
            self.reach *= acceptance.likelihood(confidence) if self.greedy else self.rate
            if not depth.worth_verifying(drafted + len(self.tokens) - before, self.reach):
                if not self.tokens:
                    acceptance.learn(self.request_id, self.reach)
                self.limit = len(self.tokens)
                break
            self.confidences.append(confidence if self.greedy else None)
            self.tokens.append(token)
        return len(self.tokens) - before


LEAST_GUESSED = 0.3
"""Acceptance rate of a request's guesses below which it drafts none from its text."""
MOST_GUESSED = 64
"""Guesses of a step at most that no draft pass has read: each takes memory for its logits."""


def look_up(drafts: Sequence[Draft], depth: Depth, acceptance: Acceptance) -> float:
    """Add guesses from the text to the ``drafts`` of one step, as far as they pay for their rows;
    returns how many of the drafted tokens the backbone is expected to keep."""
    drafted = sum(len(draft.tokens) for draft in drafts)
    expected, guessed = 0.0, 0
    for draft in drafts:
        guesses, draft.match = draft.guess(draft.limit)
        rate = acceptance.guess_rate(draft.request_id, draft.match)
        if rate < LEAST_GUESSED:
            continue
        for token in guesses[: MOST_GUESSED - guessed]:
            reach = draft.reach * rate
            if draft.full or not depth.worth_verifying(drafted, reach):
                break
            draft.reach = reach
            draft.tokens.append(token)
            drafted, guessed = drafted + 1, guessed + 1
            expected += reach
    return expected


def guess_alone(drafts: Sequence[Draft], depth: Depth, acceptance: Acceptance) -> bool:
    """Fill the ``drafts`` of one step with guesses alone, where a token then takes less time than
    with draft passes; returns whether it does."""
    expected = look_up(drafts, depth, acceptance)
    guessed = sum(draft.guessed for draft in drafts)
    if expected and depth.with_drafts(guessed) < depth.price * (len(drafts) + expected):
        return True
    for draft in drafts:
        draft.tokens.clear()
        draft.reach = 1.0
    return False


def run(
    drafts: Sequence[Draft],
    depth: Depth,
    acceptance: Acceptance,
    draft_pass: Callable[[Sequence[Draft]], Sequence[Sequence[Found]]],
) -> None:
    """Fill the ``drafts`` of one step by calls of ``draft_pass``, which finds next tokens."""
    if not depth.price:
        return
    going = [draft for draft in drafts if not draft.full]
    drafted = 0
    while going := [d for d in going if depth.worth_verifying(drafted, d.reach * d.rate)]:
        # ``best_depth`` has weighed the first draft pass. Each further pass is weighed by the
        # river's confidence in the tokens so far.
        if drafted and not depth.worth_drafting(drafted, [d.reach * d.rate for d in going]):
            return
        for draft, found in zip(going, draft_pass(going), strict=True):
            drafted += draft.take(found, drafted, depth, acceptance)
        going = [draft for draft in going if not draft.full]


def continuation(tokens: npt.NDArray[np.int32], most: int) -> Guess:
    """Up to ``most`` tokens after an earlier occurrence of the last of ``tokens``, a request's
    prompt and answer: the latest of those that have most of them in common."""
    match, last = SHORTEST, len(tokens)
    if most <= 0 or last <= match:
        return Guess([], 0)
    same = (tokens[:-2] == tokens[-2]) & (tokens[1:-1] == tokens[-1])
    ends = np.flatnonzero(same) + match
    if not ends.size:
        return Guess([], 0)
    while match < LONGEST:
        longer = ends[ends > match]
        longer = longer[tokens[longer - match - 1] == tokens[last - match - 1]]
        if not longer.size:
            break
        ends, match = longer, match + 1
    after = int(ends[-1])
    return Guess(tokens[after : after + most].tolist(), match)


@dataclass(frozen=True, slots=True)
class Picked:
    """One draft step's tokens.

    Attributes:
        tokens: int64 ``[rows]``, the picked tokens.
        confidence: float32 ``[rows]``, the river's probability of its likeliest token.
        probabilities: float32 ``[rows, vocabulary]`` that the picks were sampled from; None where
            every row is greedy.
    """

    tokens: torch.Tensor
    confidence: torch.Tensor
    probabilities: torch.Tensor | None

    def agreed(self, broadcast: Callable[[torch.Tensor], torch.Tensor]) -> Picked:
        """One rank's picks and confidences, on every rank: all ranks run the same draft passes."""
        both = torch.stack((self.tokens.double(), self.confidence.double()))
        tokens, confidence = broadcast(both)
        return replace(self, tokens=tokens.long(), confidence=confidence.float())

    def read(self) -> tuple[list[int], list[float]]:
        """Tokens and confidences, in one copy to the host."""
        tokens, confidence = torch.stack((self.tokens.double(), self.confidence.double())).tolist()
        return [int(token) for token in tokens], confidence


def joined(picks: Sequence[Picked]) -> Picked:
    """The picks of several passes, one pass after the other."""
    if len(picks) == 1:
        return picks[0]
    drawn = [one.probabilities for one in picks if one.probabilities is not None]
    return Picked(
        torch.cat([one.tokens for one in picks]),
        torch.cat([one.confidence for one in picks]),
        torch.cat(drawn) if drawn else None,
    )


def pick(logits: torch.Tensor, rows: torch.Tensor, metadata: Any, sampled: Sequence[int]) -> Picked:
    """Pick a token for each row: greedy, or sampled at temperature, top-k and top-p.

    Rejection sampling is exact for every distribution of drafts (Leviathan et al. 2023). So the
    request's other settings apply to the backbone's logits only.

    Args:
        logits: ``[rows, vocabulary]``, not kept.
        rows: int64, the requests' rows in the batch.
        metadata: vLLM's ``SamplingMetadata`` of the batch.
        sampled: ``rows`` on the host; empty where all of them are greedy.
    """
    logits = logits.float()
    best, tokens = logits.max(dim=-1)
    confidence = torch.exp(best - logits.logsumexp(dim=-1))
    if not sampled:
        return Picked(tokens, confidence, None)
    temperature = metadata.temperature[rows]
    draws = temperature >= GREEDY
    logits /= torch.where(draws, temperature, 1.0).unsqueeze(1)
    top_k = None if metadata.top_k is None else metadata.top_k[rows]
    top_p = None if metadata.top_p is None else metadata.top_p[rows]
    probabilities = apply_top_k_top_p(logits, top_k, top_p).softmax(dim=-1, dtype=torch.float32)
    drawn = _draw(probabilities, sampled, metadata.generators)
    return Picked(torch.where(draws, drawn, tokens), confidence, probabilities)


def _draw(
    probabilities: torch.Tensor, rows: Sequence[int], generators: Mapping[int, torch.Generator]
) -> torch.Tensor:
    """One column per row, by the exponential race that vLLM's own sampler runs."""
    noise = torch.empty_like(probabilities).exponential_()
    for place, row in enumerate(rows):
        if row in generators:
            noise[place].exponential_(generator=generators[row])
    return (probabilities / noise).argmax(dim=-1)
