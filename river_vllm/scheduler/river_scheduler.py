"""vLLM's scheduler with exit layers on its outputs."""

from __future__ import annotations

from functools import cache
from typing import Any

from river_vllm.compat import init_logger
from river_vllm.modes import mode_of, settings_of
from river_vllm.registration import river_config_of
from river_vllm.request import unreachable
from river_vllm.scheduler.prefix_cache import isolate

logger = init_logger("vllm.river")


class RiverSchedulerMixin:
    """Goes before one of vLLM's scheduler classes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._river_config = river_config_of(kwargs["vllm_config"])
        model_config = kwargs["vllm_config"].model_config
        self._river_layers = model_config.get_total_num_hidden_layers()
        self._river_mode = mode_of(self._river_config)
        self._river_defaults = self._river_mode.defaults(self._river_config)

    def add_request(self: Any, request: Any) -> None:
        params = request.sampling_params
        settings = settings_of(params and params.extra_args, self._river_defaults)
        if error := unreachable(settings, self._river_config, self._river_layers):
            # The server has refused such a request; one made in Python is answered and said so.
            logger.warning("request %s: %s", request.request_id, error)
        isolate(request, settings, self._river_config, self.hash_block_size)
        super().add_request(request)  # type: ignore[misc]

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        numbers = self._river_mode.numbers(self.requests, scheduler_output, model_runner_output)
        outputs = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )
        for client in outputs.values():
            for output in client.outputs:
                number = numbers.get(output.request_id)
                if number is not None and output.new_token_ids:
                    output.routed_experts = number(len(output.new_token_ids))
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
