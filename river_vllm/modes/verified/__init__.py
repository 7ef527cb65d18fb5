"""Verified mode: the river drafts and the backbone checks; the answer is the backbone's own.

One number travels with each token (``modes/mode.py``). Bit 0: the token was drafted and accepted.
Bit 1: it is the first of a decode step. Bits 2 to 11: tokens drafted in that step. Bit 12: it comes
from the prompt. ``MARK``: the number is no exit layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from river_vllm.modes.mode import Numbers

if TYPE_CHECKING:
    from river_vllm.config import RiverConfig
    from river_vllm.request import RiverSettings
    from river_vllm.step.table import Head

_KEPT, _STEP, _DRAFTED = 1, 2, 2
_PROMPT = 1 << 12
MARK = 1 << 13
"""Added to each number: more than any number of an exit layer."""

RECENT = 300
"""Drafted tokens that a meaningful acceptance rate of a server needs."""


class VerifiedMode:
    """Lossless: no token exits."""

    schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "description": "The river's drafts (--river-verify).",
        "properties": {
            "enabled": {"type": "boolean"},
            "mode": {"type": "string", "enum": ["verified"]},
            "num_layers": {"type": "integer"},
            "tokens": {"type": "integer", "description": "tokens generated in decode steps"},
            "steps": {"type": "integer", "description": "decode steps: passes of the backbone"},
            "tokens_per_step": {"type": ["number", "null"]},
            "drafted": {"type": "integer", "description": "tokens that the backbone checked"},
            "accepted": {"type": "integer", "description": "drafted tokens in the answer"},
            "acceptance": {"type": ["number", "null"]},
        },
    }

    def head(self, config: RiverConfig) -> Head | None:
        return "draft" if config.drafts else None

    def leaves_kv(self, settings: RiverSettings) -> bool:
        """False: the backbone overwrites the K and V of every draft."""
        return False

    def numbers(self, tokens: int, *, depth: int, drafted: int, kept: int, decode: bool) -> Numbers:
        values = np.full(tokens, MARK, dtype=np.int16)
        values[:kept] |= _KEPT
        if decode:
            values[0] |= _STEP | drafted << _DRAFTED
        else:
            values |= _PROMPT
        return values

    def summary(self) -> DraftSummary:
        return DraftSummary()

    def trace(self, numbers: Numbers) -> list[int]:
        """For each token, in order: 1 where the river drafted it, 0 where the backbone made it."""
        return (numbers & _KEPT).tolist()


@dataclass(slots=True)
class DraftSummary:
    """Drafts of one or more choices."""

    steps: int = 0
    """Decode steps: passes of the backbone."""
    tokens: int = 0
    """Tokens that decode steps made."""
    drafted: int = 0
    accepted: int = 0
    """Drafted tokens in the answer, without those that a stop has cut off."""
    held: int = 0

    def add(self, numbers: Numbers) -> None:
        first = numbers & _STEP != 0
        self.steps += int(first.sum())
        self.drafted += int(((numbers[first] & ~MARK) >> _DRAFTED).sum())
        self.accepted += int((numbers & _KEPT).sum())
        self.tokens += int((numbers & _PROMPT == 0).sum())

    def by_layer(self, num_layers: int) -> dict[int, int]:
        return {num_layers: self.tokens} if self.tokens else {}

    def report(self, settings: RiverSettings, num_layers: int) -> dict[str, Any]:
        return {
            "num_layers": num_layers,
            "tokens": self.tokens,
            "steps": self.steps,
            "tokens_per_step": round(self.tokens / self.steps, 3) if self.steps else None,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "acceptance": round(self.accepted / self.drafted, 4) if self.drafted else None,
        }


@dataclass(slots=True)
class RecentDrafts:
    """Recently drafted tokens, and how many of them were accepted."""

    drafted: float = 0.0
    kept: float = 0.0

    def add(self, drafted: int, kept: int) -> float | None:
        """Count a draft; returns the acceptance rate, None before ``RECENT`` drafted tokens."""
        self.drafted += drafted
        self.kept += kept
        if self.drafted >= 2 * RECENT:
            self.drafted, self.kept = self.drafted / 2, self.kept / 2
        return self.kept / self.drafted if self.drafted >= RECENT else None
