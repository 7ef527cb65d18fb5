"""What a mode is: how one request is answered, and what its response says of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from river_vllm.depths import Depths
    from river_vllm.request import RiverSettings


class Summary(Protocol):
    """What became of the tokens of one or more choices.

    Attributes:
        held: tokens that ran on only because leaving would not have paid.
        drafted: tokens that the river drafted and the backbone checked.
        accepted: those of them that are in an answer.
    """

    held: int
    drafted: int
    accepted: int

    def add(self, numbers: Depths) -> None:
        """Take the numbers of more tokens."""

    def report(self, settings: RiverSettings, num_layers: int) -> dict[str, Any]:
        """What the ``river`` object of a response says of them."""

    def by_layer(self, num_layers: int) -> Mapping[int, int]:
        """Tokens that decode steps made, by the backbone layers that they ran."""


class Mode(Protocol):
    """How a request is answered: by exits, or by drafts that the backbone verifies."""

    def numbers(self, tokens: int, *, depth: int, drafted: int, kept: int, decode: bool) -> Depths:
        """What travels with the ``tokens`` that a step brought for a request, one number each, in
        vLLM's ``routed_experts`` array (``river_vllm.depths``). A stop may have cut some off.

        Args:
            depth: signed, of the request's last row.
            drafted: tokens that the backbone checked.
            kept: of those; they come first, the backbone's own token last.
            decode: False where the token came out of the prompt's last row.
        """

    def summary(self) -> Summary:
        """An empty one."""

    def trace(self, numbers: Depths) -> list[int]:
        """The ``river_trace`` of these tokens."""
