"""What a mode does in a worker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from river_vllm.step import StepTable


class WorkerMode(Protocol):
    """Asked before, in and after each step of vLLM's runner (V1)."""

    def table(self) -> StepTable:
        """The step that the runner has prepared."""

    def depths(self, table: StepTable) -> list[int]:
        """After the pass: the signed depth of each request's last row (``river_vllm.depths``), in
        the batch's order; nothing where depths say nothing."""

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop what is kept for requests that have ended."""

    def measure(self) -> None:
        """Once the engine is warm and has its K/V cache: learn what its passes cost."""

    def info(self) -> dict[str, Any]:
        """What the mode goes by, for operators."""
