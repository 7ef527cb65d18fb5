"""What a mode is: how one request is answered, and what its response says of that.

A step gives each token one number (int16), whose meaning its mode knows. The numbers ride in vLLM's
per-step ``routed_experts`` array, which vLLM's front end concatenates over a choice's life, trims
at stop strings and hands over when the choice finishes. River has no other use for that array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from river_vllm.config import RiverConfig
    from river_vllm.model.passes import Head, Pass
    from river_vllm.request import RiverSettings

Numbers: TypeAlias = npt.NDArray[np.int16]

_ATTRIBUTE = "river"
"""Extra attribute of vLLM's ``ModelRunnerOutput``, a plain dataclass that is pickled whole."""


def put_depths(output: Any, depths: dict[str, int]) -> Any:
    """Put ``depths`` (request id → signed depth) on the output of a runner's ``sample_tokens``.

    vLLM's asynchronous output holds the final one in ``_model_runner_output``
    (``v1/worker/gpu_model_runner.py``).
    """
    if output is not None:
        setattr(getattr(output, "_model_runner_output", output), _ATTRIBUTE, depths)
    return output


def depths_of(output: Any) -> dict[str, int]:
    """The depths that ``put_depths`` put there; empty for a step without a forward pass."""
    return getattr(output, _ATTRIBUTE, None) or {}


class Timed(NamedTuple):
    """A kind of pass whose time decides.

    Attributes:
        make: makes a pass of so many rows.
        most: rows that such a pass can have.
    """

    make: Callable[[int], Pass]
    most: int


class Summary(Protocol):
    """Counts over the tokens of one or more choices.

    Attributes:
        held: tokens that ran on only because leaving would not have paid.
        drafted: tokens that the river drafted and the backbone checked.
        accepted: how many of them are in an answer.
    """

    held: int
    drafted: int
    accepted: int

    def add(self, numbers: Numbers) -> None:
        """Count more tokens."""

    def report(self, settings: RiverSettings, num_layers: int) -> dict[str, Any]:
        """The counts, for the ``river`` object of a response."""

    def by_layer(self, num_layers: int) -> Mapping[int, int]:
        """Tokens that decode steps made, by the backbone layers that they ran."""


class Mode(Protocol):
    """How a request is answered: by exits, or by drafts that the backbone verifies.

    Attributes:
        exact: whether its rows on the backbone need stock vLLM's bits.
        schema: of its report, for the API's description.
    """

    exact: ClassVar[bool]
    schema: ClassVar[dict[str, Any]]

    def head(self, config: RiverConfig) -> Head | None:
        """What makes logits for it in an engine, beside the bf16 LM head."""

    def leaves_kv(self, settings: RiverSettings) -> bool:
        """Whether K and V that the river wrote stay in the cache."""

    def numbers(self, tokens: int, *, depth: int, drafted: int, kept: int, decode: bool) -> Numbers:
        """The numbers of the ``tokens`` that a step brought for a request.

        Args:
            depth: signed, of the request's last row (``exit.py``).
            drafted: tokens that the backbone checked.
            kept: how many of them stayed; they come first, the backbone's own token last.
            decode: False where the token came out of the prompt's last row.
        """

    def summary(self) -> Summary:
        """An empty one."""

    def trace(self, numbers: Numbers) -> list[int]:
        """The ``river_trace`` of these tokens."""
