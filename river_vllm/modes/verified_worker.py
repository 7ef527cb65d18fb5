"""Verified mode in a worker: every step is the backbone's, and between steps the river drafts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from river_vllm.step import StepTable


class VerifiedWorker:
    """Hands everything on to River's drafter, which vLLM itself asks for drafts.

    Args:
        runner: vLLM's, V1, with a ``RiverProposer``.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._num_layers = runner.get_model().river.num_layers

    def table(self) -> StepTable:
        rows = int(self._runner.query_start_loc.np[self._runner.input_batch.num_reqs])
        return StepTable(self._num_layers, [rows], [1.0], [self._num_layers])

    def depths(self, table: StepTable) -> list[int]:
        return []

    def took(self, table: StepTable, seconds: float) -> None:
        self._runner.drafter.took(table.num_rows, seconds)

    def forget(self, request_ids: Iterable[str]) -> None:
        self._runner.drafter.forget(request_ids)

    def measure(self) -> None:
        self._runner.drafter.measure_costs()

    def info(self) -> dict[str, Any]:
        found: dict[str, Any] = self._runner.drafter.info()
        return found
