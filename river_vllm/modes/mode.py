"""What a mode is, to the front end, the scheduler and the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from river_vllm.compat import VllmConfig
    from river_vllm.config import RiverConfig
    from river_vllm.depths import Depths
    from river_vllm.request import RiverField, RiverSettings
    from river_vllm.step import StepTable

Numbers = Callable[[int], "Depths"]
"""From how many tokens a step brought for a request to what travels with them, one number each in
vLLM's ``routed_experts`` array (``river_vllm.depths``)."""


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
    """How an engine answers: by exits, or by drafts that the backbone verifies."""

    name: str
    fixed: str | None
    """Why the threshold cannot be changed while the engine runs; None where it can."""

    def defaults(self, config: RiverConfig) -> RiverSettings:
        """What holds for a request that says nothing."""

    def unused(self, field: RiverField) -> tuple[str, str] | None:
        """The first of the request's fields that this mode has no use for, and why."""

    def settled(self, settings: RiverSettings, defaults: RiverSettings) -> RiverSettings:
        """The settings of a request as a worker follows them."""

    def summary(self) -> Summary:
        """An empty one."""

    def trace(self, numbers: Depths) -> list[int]:
        """The ``river_trace`` of these tokens."""

    def describe(self, config: RiverConfig, defaults: RiverSettings) -> dict[str, Any]:
        """What ``GET /river`` says of the mode."""

    def dial(self, config: RiverConfig, defaults: RiverSettings) -> str:
        """The same in a line for the terminal."""

    def numbers(
        self, requests: Mapping[str, Any], scheduler_output: Any, model_runner_output: Any
    ) -> dict[str, Numbers]:
        """What a step did for each of its requests; asked before the scheduler takes it in."""

    def configure(self, vllm_config: VllmConfig, config: RiverConfig) -> None:
        """Settle what of vLLM's own configuration the mode needs.

        Raises:
            UnsupportedModelError: the engine has no place for it.
        """

    def worker(self, runner: Any, config: RiverConfig) -> WorkerMode:
        """Its part in a worker, for vLLM's runner (V1), whose model has been loaded."""


class WorkerMode(Protocol):
    """Asked before, in and after each step of vLLM's runner (V1)."""

    def table(self) -> StepTable:
        """The step that the runner has prepared."""

    def depths(self, table: StepTable) -> list[int]:
        """After the pass: the signed depth of each request's last row (``river_vllm.depths``), in
        the batch's order; nothing where depths say nothing."""

    def took(self, table: StepTable, seconds: float) -> None:
        """Learn what the pass took, its logits included."""

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop what is kept for requests that have ended."""

    def measure(self) -> None:
        """Once the engine is warm and has its K/V cache: learn what its passes cost."""

    def info(self) -> dict[str, Any]:
        """What the mode goes by, for operators."""
