"""Whole decode steps of both kinds, on no request: what they take decides up to where exits pay."""

from __future__ import annotations

from typing import Any

import torch

from river_vllm.layers.river import River
from river_vllm.verify.drafter import RiverDrafter

USUAL_LAYERS = 4
"""Backbone layers of a token that leaves where no setting asks for more (the paper: 3 to 4)."""


def measure_crossover(runner: Any, river: River) -> None:
    """Have ``river`` know from how many rows on its steps no longer pay.

    What the steps write goes to vLLM's null block, which no request reads. The backbone's are
    vLLM's dummy runs, which leave attention out; that is little against reading the weights, and
    on the careful side.

    Args:
        runner: vLLM's V1 runner, warmed up and with its K/V cache.
    """
    layers = min(max(river.config.min_layers, USUAL_LAYERS), river.num_layers)
    routed = RiverDrafter(runner, layers, "river_head")

    def exits(rows: int) -> None:
        zeros = torch.zeros(rows, dtype=torch.int64, device=runner.device)
        routed.step([0] * rows, zeros, zeros).argmax(dim=-1).tolist()

    def stays(rows: int) -> None:
        hidden, _ = runner._dummy_run(rows)
        runner.model.compute_logits(hidden[:rows]).argmax(dim=-1).tolist()

    river.measure_steps(stays, exits, runner.max_num_reqs)
