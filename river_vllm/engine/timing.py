"""Costs of passes: read from an earlier start's file, or timed now, on no request."""

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
from river_vllm.config import Affects, river_config_of
from river_vllm.costs import Costs, Kind
from river_vllm.engine_config import sources
from river_vllm.kernels.native import build
from river_vllm.model.forward import Forward
from river_vllm.modes.mode import Timed
from river_vllm.weights.cache import cache_folders

logger = init_logger("vllm.river")


def costs_of_start(runner: Any, forward: Forward, timed: Mapping[Kind, Timed]) -> Costs:
    """The costs of passes, the same on every rank; empty if no decision needs them.

    Args:
        runner: vLLM's V1 runner, warmed up and with its K/V cache.
        timed: passes whose times decide; the backbone's are added.
    """
    if not timed:
        return Costs()
    rows = max(one.most for one in timed.values())
    layers = forward.river.num_layers
    backbone = Timed(lambda rows: forward.idle(rows, layers, "backbone"), rows)
    kinds: dict[Kind, Timed] = {"backbone": backbone, **timed}
    many = get_tensor_model_parallel_world_size() > 1
    most = {kind: one.most for kind, one in kinds.items()}
    costs = Costs(_key(runner), most, _of_first_rank if many else None)
    config = river_config_of(runner.vllm_config)
    folders = cache_folders(config.cache_dir, runner.vllm_config.model_config.model)
    files = [folder / costs.file_name for folder in folders]
    first = get_tp_group().is_first_rank
    found = first and any(map(costs.load, files))
    if many:
        costs, found = _of_first_rank((costs, found))
    if not found:
        costs.measure({kind: _runs(forward, one) for kind, one in kinds.items()})
        if first:
            any(map(costs.save, files))
    logger.info("River: what steps cost: %s", costs.describe(time.time()))
    return costs


def _runs(forward: Forward, timed: Timed) -> Any:
    """A function that runs a pass of the given number of rows to its end."""
    return lambda rows: forward.logits(timed.make(rows)).float().argmax(dim=-1).tolist()


def _of_first_rank(value: Any) -> Any:
    return get_tp_group().broadcast_object(value, src=0)


def _key(runner: Any) -> dict[str, str | int]:
    vllm_config, info = runner.vllm_config, runner.get_model().river_info()
    model = vllm_config.model_config
    return {
        "code": sources(),
        "torch": torch.__version__,
        "device": current_platform.get_device_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ranks": get_tensor_model_parallel_world_size(),
        "nodes": vllm_config.parallel_config.nnodes,
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
        "settings": river_config_of(vllm_config).what_affects(Affects.COST),
    }
