"""A runner's batch, step by step, without a model."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm import SamplingParams

from river_vllm.config import RiverConfig
from river_vllm.costs import Costs
from river_vllm.modes.exit import Exits
from river_vllm.request import default_settings
from river_vllm.step.requests import Request, Requests
from river_vllm.step.table import StepTable

L = 12
"""Decoder layers."""

OFF = {"enabled": False}


class Batch:
    """What ``Requests`` reads of vLLM's V1 runner, and the policy of exits over it.

    Args:
        every_logit: whether sampling looks at every logit of a request.
        costs: whether leaving pays.
        config: the engine's settings.
    """

    def __init__(
        self,
        every_logit: Callable[[Request], bool] = lambda request: False,
        costs: Any = None,
        **config: Any,
    ) -> None:
        self.runner: Any = SimpleNamespace(requests={})
        settings = {"threshold": 0.9, "min_layers": 2, "scope": "token", "max_rows": "all"}
        made = RiverConfig(**{**settings, **config})
        self.requests = Requests(self.runner, default_settings(made))
        self.exits = Exits(made, L, costs or Costs(), every_logit)

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
        self.scheduled = self.requests.step()
        table: Any = self.exits.table(self.scheduled)
        table.held = [line.held for line, _ in self.exits.groups()]
        return table

    def finish(self, table: StepTable, *depths: int) -> list[int]:
        """After a pass in which the groups that may leave have left after ``depths``."""
        table.exit_layer[table.free] = depths
        table.close()
        return self.exits.depths(table)

    def head(self, *rows: tuple[str, int, int]) -> str:
        """What makes the logits of a step."""
        return self.exits.head(self.begin(*rows))

    def step(self, *rows: tuple[str, int, int], left: tuple[int, ...] = ()) -> list[int]:
        return self.finish(self.begin(*rows), *left)


def groups(table: Any) -> list[str]:
    """Of each group its rows, and when they leave."""

    def when(group: int) -> str:
        if not table.free[group]:
            return "held" if table.held[group] else "stay"
        return f"at {table.floor[group]}" if table.replayed[group] else "decide"

    return [f"{rows} {when(group)}" for group, rows in enumerate(table.rows)]
