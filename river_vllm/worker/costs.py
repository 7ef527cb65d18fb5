"""What the passes of an engine cost: as an earlier start has saved it, or timed now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from river_vllm.compat import get_tensor_model_parallel_world_size, get_tp_group
from river_vllm.costs import Costs, Kind, Pass


def measured_costs(
    runner: Any,
    passes: Mapping[Kind, Pass],
    most: Mapping[Kind, int],
    settings: Mapping[str, int | str],
) -> Costs:
    """The same on every rank; saved beside the packed weights.

    With one rank on the CPU they go on learning. Ranks would learn different things, and a GPU's
    pass returns before its work is done.

    Args:
        runner: vLLM's, V1, warm and with its K/V cache.
        passes: what runs a pass of each kind over so many rows, to its end.
        most: rows that each can have.
        settings: what else the passes depend on.
    """
    info = runner.get_model().river_info()
    shape = ("num_layers", "river_bytes", "backbone_bytes", "activations", "lm_head")
    key = {
        **{name: info[name] for name in shape},
        **{f"most_{kind}": rows for kind, rows in most.items()},
        "isa": str(info["isa"]),
        "kernels": "/".join(info["kernels"]),
        "compiled": str(runner.vllm_config.compilation_config.mode),
        "threads": torch.get_num_threads(),
        **settings,
    }
    many = get_tensor_model_parallel_world_size() > 1
    costs = Costs(key, learns=not many and torch.device(runner.device).type == "cpu")
    folder = info["weights"]["folder"]
    path = None if many or folder is None else Path(folder) / costs.file_name
    if path is None or not costs.load(path):
        costs.measure(passes, most)
        if path is not None:
            costs.save(path)
    if many:
        costs = get_tp_group().broadcast_object(costs, src=0)
    return costs
