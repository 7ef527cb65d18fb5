"""The end of a start: both compiled forwards are warmed up, over as few rows as possible, and the
costs of passes are read from an earlier start's file or timed, on no request."""

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
from river_vllm.host import Stage, mark
from river_vllm.kernels.native import build
from river_vllm.model.forward import Forward
from river_vllm.modes.mode import Timed
from river_vllm.patches import NotStored, reads_compiled_forwards, stored_forwards_only
from river_vllm.weights.cache import cache_folders

logger = init_logger("vllm.river")


class WarmUpMixin:
    """Mixin of vLLM's V1 runner class, which warms up over the rows of the longest prompt; on the
    CPU by ``warming_up_model``."""

    _warm_up_rows: int | None = None
    """Rows of the warm-up under way; None: as many as vLLM wants."""

    def warming_up_model(self: Any) -> None:
        routed = self.get_model().river.routed
        rows: int | None
        if river_config_of(self.vllm_config).prefill == "sequence":
            rows = int(self.max_num_tokens)
        else:
            # The longest step that may exit. The compiler takes a size of 1 for a constant.
            rows = max(2, min(self.max_num_reqs, self.max_num_tokens))
        mark(Stage.GRAPH)
        # Without a size for the K/V cache, vLLM's warm-up measures the memory left for it.
        few_do = self.cache_config.kv_cache_memory_bytes is not None
        if routed.always:
            rows = rows if few_do else None
        elif not (few_do and self._river_read_back(rows)):
            # Compile over as many rows as stock vLLM does: their number is a hint to the compiler,
            # and exact requests must get the bits of the same machine code.
            mark(Stage.COMPILE)
            super().warming_up_model()  # type: ignore[misc]
        if routed.compiles:
            with routed():
                if not self._river_read_back(rows):
                    mark(Stage.COMPILE_RIVER)
                    self._river_compile(rows)

    def profile_run(self: Any, *args: Any, **kwargs: Any) -> None:
        """Run over the rows that ``_river_warm_up`` has set, else as vLLM does."""
        if self._warm_up_rows is None:
            super().profile_run(*args, **kwargs)  # type: ignore[misc]
            return
        _, last = self._dummy_run(self._warm_up_rows, is_profile=True)
        self._dummy_sampler_run(last)

    def _river_read_back(self: Any, rows: int | None) -> bool:
        """Warm up the current forward over ``rows`` if an earlier start has compiled it."""
        parallel = self.vllm_config.parallel_config
        # Ranks meet in every pass: a rank without the file would wait in another pass.
        one_rank = parallel.world_size * parallel.data_parallel_size == 1
        if not (one_rank and reads_compiled_forwards(self.vllm_config)):
            return False
        try:
            with stored_forwards_only():
                self._river_warm_up(rows)
        except NotStored:
            return False
        return True

    def _river_compile(self: Any, rows: int | None) -> None:
        """Compile River's forward: equal layers once for all, or each by itself if torch fails."""
        routed = self.get_model().river.routed
        try:
            with routed.one_layer_for_all():
                self._river_warm_up(rows)
        except Exception as error:
            # An error of another cause comes up again in the second attempt.
            logger.info("River: each layer is compiled by itself (%r)", error)
            routed.forget()
            self._river_warm_up(rows)

    def _river_warm_up(self: Any, rows: int | None) -> None:
        self._warm_up_rows = rows
        try:
            super().warming_up_model()  # type: ignore[misc]
        finally:
            self._warm_up_rows = None


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
        "adapters": vllm_config.lora_config is not None,
        "compiled": str(vllm_config.compilation_config.mode),
        "settings": river_config_of(vllm_config).what_affects(Affects.COST),
    }
