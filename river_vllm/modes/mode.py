"""The interface of a mode, which answers a request and reports on the answer.

A step gives each token one number (int16), whose meaning depends on the mode. The numbers travel in
vLLM's per-step ``routed_experts`` array. vLLM's front end concatenates these arrays over a choice's
life, trims them at stop strings and returns them when the choice finishes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from river_vllm.config import RiverConfig
    from river_vllm.request import RiverSettings
    from river_vllm.step.table import Head, Pass

Numbers: TypeAlias = npt.NDArray[np.int16]


class Timed(NamedTuple):
    """A kind of pass whose time decides: ``make`` makes one of so many rows, ``most`` at most."""

    make: Callable[[int], Pass]
    most: int


class Summary(Protocol):
    """Counts over the tokens of one or more choices.

    Attributes:
        held: tokens kept on the backbone only because leaving would not have paid.
        drafted: tokens that the river drafted and the backbone checked.
        accepted: drafted tokens that are in an answer.
    """

    held: int
    drafted: int
    accepted: int

    def add(self, numbers: Numbers) -> None:
        """Count more tokens."""

    def report(self, settings: RiverSettings, num_layers: int) -> dict[str, Any]:
        """The counts, for the ``river`` object of a response; a ratio over nothing is None."""

    def by_layer(self, num_layers: int) -> Mapping[int, int]:
        """Tokens that decode steps made, by the backbone layers that they ran."""


class Mode(Protocol):
    """How a request is answered: by exits, or by drafts that the backbone verifies.

    Attributes:
        schema: JSON schema of its report, for the API's description.
    """

    schema: ClassVar[dict[str, Any]]

    def head(self, config: RiverConfig) -> Head | None:
        """The LM head that the mode uses beside the bf16 one; None: no other."""

    def leaves_kv(self, settings: RiverSettings) -> bool:
        """Whether K and V that the river wrote stay in the cache."""

    def numbers(self, tokens: int, *, depth: int, drafted: int, kept: int, decode: bool) -> Numbers:
        """The numbers of the ``tokens`` that a step brought for a request.

        Args:
            depth: signed, of the request's last row (``modes/exit.py``).
            drafted: tokens that the backbone checked.
            kept: accepted drafts; they come first, the backbone's own token last.
            decode: False where the token came out of the prompt's last row.
        """

    def summary(self) -> Summary:
        """An empty one."""

    def trace(self, numbers: Numbers) -> list[int]:
        """The ``river_trace`` of these tokens."""
