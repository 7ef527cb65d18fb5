"""Whole decode steps of both kinds, on no request: what they take decides up to where exits pay."""

from __future__ import annotations

from typing import Any

from river_vllm.layers.river import River
from river_vllm.verify.drafter import RiverDrafter

USUAL_LAYERS = 4
"""Backbone layers of a token that leaves where no setting asks for more (the paper: 3 to 4)."""


def measure_crossover(runner: Any, river: River) -> None:
    """Have ``river`` know from how many rows on its steps no longer pay.

    Args:
        runner: vLLM's V1 runner, warmed up and with its K/V cache.
    """
    layers = min(max(river.config.min_layers, USUAL_LAYERS), river.num_layers)
    steps = RiverDrafter(runner, layers, "river_head")
    river.measure_steps(steps.idle_pass, steps.idle_step, runner.max_num_reqs)
