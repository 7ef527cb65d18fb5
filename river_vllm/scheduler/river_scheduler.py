"""vLLM's scheduler with exit layers on its outputs."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from river_vllm.compat import init_logger
from river_vllm.registration import river_config_of
from river_vllm.request import RiverSettings, settings_of, unreachable
from river_vllm.scheduler.prefix_cache import isolate
from river_vllm.verify.tally import StepTally, step_tallies
from river_vllm.worker.output import depths_of

logger = init_logger("vllm.river")


class RiverSchedulerMixin:
    """Goes before one of vLLM's scheduler classes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._river_config = river_config_of(kwargs["vllm_config"])
        model_config = kwargs["vllm_config"].model_config
        self._river_layers = model_config.get_total_num_hidden_layers()
        self._river_defaults = RiverSettings.from_config(self._river_config)

    def add_request(self: Any, request: Any) -> None:
        params = request.sampling_params
        settings = settings_of(params and params.extra_args, self._river_defaults)
        if error := unreachable(settings, self._river_config, self._river_layers):
            # The server has refused such a request; one made in Python is answered and said so.
            logger.warning("request %s: %s", request.request_id, error)
        isolate(request, settings, self._river_config, self.hash_block_size)
        super().add_request(request)  # type: ignore[misc]

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        tallies: dict[str, StepTally] = {}
        if self._river_config.verify:
            tallies = step_tallies(self.requests, scheduler_output, model_runner_output)
        outputs = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )
        depths = depths_of(model_runner_output)
        for client in outputs.values():
            for output in client.outputs:
                tally = tallies.get(output.request_id)
                if tally is not None and output.new_token_ids:
                    output.routed_experts = tally.values(len(output.new_token_ids))
        for client in outputs.values():
            for output in client.outputs:
                depth = depths.get(output.request_id)
                if depth is not None and output.new_token_ids:
                    count = len(output.new_token_ids)
                    output.routed_experts = np.full(count, depth, dtype=np.int16)
        return outputs


class RiverScheduler:
    """What ``scheduler_cls`` names: makes the scheduler that the engine's mode needs."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        asynchronous = kwargs["vllm_config"].scheduler_config.async_scheduling
        return _scheduler_class(bool(asynchronous))(*args, **kwargs)


@cache
def _scheduler_class(asynchronous: bool) -> type:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    base = AsyncScheduler if asynchronous else Scheduler
    return type(f"River{base.__name__}", (RiverSchedulerMixin, base), {})
