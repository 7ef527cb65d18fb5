"""A runner's batch, step by step, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm import SamplingParams

from river_vllm.config import RiverConfig
from river_vllm.step.table import StepTable
from river_vllm.step.requests import Steps

L = 12
"""Decoder layers."""

OFF = {"enabled": False}


class Batch:
    """What ``Steps`` reads of vLLM's V1 runner.

    Args:
        steps: its class.
        processors: of logits.
        config: the engine's settings.
    """

    def __init__(
        self, steps: type[Steps] = Steps, processors: Sequence[Any] = (), **config: Any
    ) -> None:
        model = SimpleNamespace(river=SimpleNamespace(num_layers=L, dense=None))
        batch = SimpleNamespace(logitsprocs=SimpleNamespace(all=processors))
        self.runner: Any = SimpleNamespace(
            requests={}, device="cpu", get_model=lambda: model, input_batch=batch
        )
        settings = {"threshold": 0.9, "min_layers": 2, "scope": "token", "max_rows": "all"}
        self.steps = steps(self.runner, RiverConfig(**{**settings, **config}))

    def ask(self, request_id: str, river: Any = None, prompt: int = 4, **params: Any) -> None:
        """A request arrives; one that is not announced has nothing to say."""
        extra = params.pop("extra_args", {}) | ({} if river is None else {"river": river})
        self.runner.requests[request_id] = SimpleNamespace(
            num_prompt_tokens=prompt, sampling_params=SamplingParams(extra_args=extra, **params)
        )

    def begin(self, *rows: tuple[str, int, int]) -> StepTable:
        """The table of a step: of each request its rows, and where the first of them stands."""
        ids, counts, positions = zip(*rows, strict=True) if rows else ((), (), ())
        for request_id in ids:
            if request_id not in self.runner.requests:
                self.ask(request_id)
        self.runner.query_start_loc = SimpleNamespace(np=np.cumsum([0, *counts]))
        self.runner.input_batch = SimpleNamespace(
            req_ids=list(ids), num_reqs=len(ids), num_computed_tokens_cpu=np.array(positions)
        )
        return self.steps.table()

    def finish(self, table: StepTable, *depths: int) -> list[int]:
        """After a pass in which the groups that may leave have left after ``depths``."""
        table.exit_layer[table.free] = depths
        table.close()
        return self.steps.depths(table)

    def step(self, *rows: tuple[str, int, int], left: tuple[int, ...] = ()) -> list[int]:
        return self.finish(self.begin(*rows), *left)


def groups(table: StepTable) -> list[str]:
    """Of each group its rows, and when they leave."""

    def when(group: int) -> str:
        if not table.free[group]:
            return "held" if table.held[group] else "stay"
        return f"at {table.floor[group]}" if table.replayed[group] else "decide"

    return [f"{rows} {when(group)}" for group, rows in enumerate(table.rows)]
