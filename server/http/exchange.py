"""River data of one HTTP request: its settings, and the exit layers of its choices."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from river_vllm.modes import mode_of
from river_vllm.modes.mode import Numbers
from river_vllm.request import RiverSettings


@dataclass(slots=True)
class RiverExchange:
    """One request's data, shared by middleware and engine client through a context variable."""

    settings: RiverSettings
    num_layers: int
    trace: bool = False
    _calls: int = 0
    _choices: dict[int, list[int]] = field(default_factory=dict)
    _unsent: dict[int, list[int]] = field(default_factory=dict)

    def next_call(self, choices: int) -> int:
        """The index of the first choice of the next engine call.

        An HTTP request makes one call, one per prompt of a list in order, or one per turn between
        the Responses API's own tools.
        """
        first = self._calls
        self._calls += choices
        return first

    def add(self, choice: int, depths: Numbers) -> None:
        """Add the depths of a choice's next tokens."""
        self._choices.setdefault(choice, []).extend(depths.tolist())

    def stream(self, choice: int, layers: Sequence[int]) -> None:
        """Queue the exit layers of a choice's next tokens for a stream with ``trace``."""
        if self.trace and layers:
            self._unsent.setdefault(choice, []).extend(layers)

    def take_unsent(self, choice: int) -> list[int]:
        """The exit layers of the choice's tokens since the last call."""
        return self._unsent.pop(choice, [])

    def trace_of(self, choice: int) -> list[int]:
        """One number per token of a choice: its exit layer; if verified, 1 if drafted, else 0."""
        return mode_of(self.settings).trace(self._depths(choice))

    def whole_trace(self) -> list[int]:
        """The traces of all engine calls, in order. A response without choices may take several
        calls: one before each tool call and one after the last."""
        return [depth for choice in sorted(self._choices) for depth in self.trace_of(choice)]

    def _depths(self, choice: int) -> Numbers:
        return np.array(self._choices.get(choice, []), dtype=np.int16)

    def report(self) -> dict[str, Any]:
        """The ``river`` object of the response."""
        summary = mode_of(self.settings).summary()
        for choice in self._choices:
            summary.add(self._depths(choice))
        return {
            "enabled": self.settings.enabled,
            "mode": self.settings.answered_by,
            **summary.report(self.settings, self.num_layers),
        }


current_exchange: ContextVar[RiverExchange | None] = ContextVar("river_exchange", default=None)
"""The exchange of the HTTP request that is being handled."""
