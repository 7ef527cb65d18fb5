"""Warm-up of both compiled forwards, over as few rows as possible."""

from __future__ import annotations

from typing import Any

from river_vllm.compat import init_logger
from river_vllm.config import river_config_of
from river_vllm.host import Stage, mark
from river_vllm.patches import NotStored, reads_compiled_forwards, stored_forwards_only

logger = init_logger("vllm.river")


class WarmUpMixin:
    """Mixin of vLLM's V1 runner class, which warms up over the rows of the longest prompt; on the
    CPU by ``warming_up_model``."""

    _warm_up_rows: int | None = None
    """Rows of the warm-up under way; None: as many as vLLM wants."""

    def warming_up_model(self: Any) -> None:
        rows = self._river_graph_rows()
        mark(Stage.GRAPH)
        # Without a size for the K/V cache, vLLM's warm-up measures the memory left for it.
        few_do = self.cache_config.kv_cache_memory_bytes is not None
        if not (few_do and self._river_read_back(rows)):
            # Compile over as many rows as stock vLLM does: their number is a hint to the compiler,
            # and exact requests must get the bits of the same machine code.
            mark(Stage.COMPILE)
            super().warming_up_model()  # type: ignore[misc]
        routed = self.get_model().river.routed
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

    def _river_read_back(self: Any, rows: int) -> bool:
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

    def _river_compile(self: Any, rows: int) -> None:
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

    def _river_warm_up(self: Any, rows: int) -> None:
        self._warm_up_rows = rows
        try:
            super().warming_up_model()  # type: ignore[misc]
        finally:
            self._warm_up_rows = None

    def _river_graph_rows(self: Any) -> int:
        """Rows of the longest step that takes River's compiled forward."""
        if river_config_of(self.vllm_config).prefill == "sequence":
            return int(self.max_num_tokens)
        # The compiler takes a size of 1 for a constant.
        return max(2, min(self.max_num_reqs, self.max_num_tokens))
