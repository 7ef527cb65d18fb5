"""What passes cost here: as an earlier start has saved it, or timed now, on no request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from river_vllm.compat import (
    current_platform,
    get_tensor_model_parallel_world_size,
    get_tp_group,
    init_logger,
)
from river_vllm.costs import Costs, Kind, Pass
from river_vllm.graph_key import sources
from river_vllm.kernels.native import build
from river_vllm.registration import river_config_of
from river_vllm.weights.cache import cache_folders

logger = init_logger("vllm.river")

MATTERS = frozenset(
    (
        *("kernel", "activations", "quantizer", "group_size", "lm_head"),
        *("min_layers", "resident_layers", "deep", "verify"),
    )
)
"""Settings that change what a pass costs."""


def costs_of_start(runner: Any, passes: Mapping[Kind, Pass], most: Mapping[Kind, int]) -> Costs:
    """Of ``passes``, the same on every rank.

    Args:
        runner: vLLM's V1 runner, warmed up and with its K/V cache.
        most: rows that a pass of each kind can have.
    """
    many = get_tensor_model_parallel_world_size() > 1
    # Each rank would learn from its own clock, and decide otherwise than the next. An accelerator's
    # step has only been launched when its call returns.
    learns = current_platform.is_cpu() and not many
    clock = _first_clock if many else time.perf_counter
    costs = Costs(_key(runner, most), learns=learns, clock=clock)
    config = river_config_of(runner.vllm_config)
    folders = cache_folders(config.cache_dir, runner.vllm_config.model_config.model)
    files = [folder / costs.file_name for folder in folders]
    first = get_tp_group().is_first_rank
    found = first and any(map(costs.load, files))
    if many:
        costs, found = get_tp_group().broadcast_object((costs, found), src=0)
    if not found:
        costs.measure(passes, most)
        if first:
            any(map(costs.save, files))
    logger.info("River: what steps cost: %s", costs.describe(time.time()))
    return costs


def _first_clock() -> float:
    """Rank 0's, on every rank."""
    seconds: float = get_tp_group().broadcast_object(time.perf_counter(), src=0)
    return seconds


def _key(runner: Any, most: Mapping[Kind, int]) -> dict[str, str | int]:
    vllm_config, info = runner.vllm_config, runner.get_model().river_info()
    model = vllm_config.model_config
    return {
        "code": sources(),
        "torch": torch.__version__,
        "device": current_platform.get_device_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ranks": get_tensor_model_parallel_world_size(),
        "isa": info["isa"] or "",
        "kernels' sources": build.fingerprint(),
        "kernels": "/".join(info["kernels"]),
        "architecture": model.architecture,
        "layers": info["num_layers"],
        "hidden": model.get_hidden_size(),
        "vocabulary": model.get_vocab_size(),
        "dtype": str(model.dtype),
        "river_bytes": info["river_bytes"],
        "backbone_bytes": info["backbone_bytes"],
        "compiled": str(vllm_config.compilation_config.mode),
        "settings": river_config_of(vllm_config).model_dump_json(include=set(MATTERS)),
        **{f"rows of {kind}": rows for kind, rows in most.items()},
    }
