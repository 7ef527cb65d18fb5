"""A K/V pool with few free blocks, on an engine that other tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def scheduler_of(engine: Any) -> Any:
    """The scheduler of an in-process engine."""
    return engine.llm_engine.engine_core.engine_core.scheduler


def runner_of(engine: Any) -> Any:
    """The model runner of an in-process engine."""
    core = engine.llm_engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker.model_runner


def requests_of(engine: Any) -> Any:
    """What the worker of an in-process engine remembers of its requests."""
    return engine.collective_rpc(lambda worker: worker.model_runner.river_requests)[0]


def free_blocks(engine: Any) -> int:
    return int(scheduler_of(engine).kv_cache_manager.block_pool.get_num_free_blocks())


@contextmanager
def few_blocks(engine: Any, blocks: int, token_budget: int | None = None) -> Iterator[list[str]]:
    """Leave only ``blocks`` free until the block ends; afterwards all of them must be free again.

    Args:
        token_budget: rows of a step, so that prompts come in chunks.

    Yields:
        The id of a request for every preemption, in their order.
    """
    scheduler = scheduler_of(engine)
    pool = scheduler.kv_cache_manager.block_pool
    engine.reset_prefix_cache()
    taken = pool.get_new_blocks(pool.get_num_free_blocks() - blocks)
    preempt, budget = scheduler._preempt_request, scheduler.max_num_scheduled_tokens
    preempted: list[str] = []

    def counting(request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request.request_id)
        return preempt(request, *args, **kwargs)

    scheduler._preempt_request = counting
    scheduler.max_num_scheduled_tokens = token_budget or budget
    try:
        yield preempted
        assert not scheduler.has_unfinished_requests()
        assert free_blocks(engine) == blocks, "a block of the pool was lost"
    finally:
        del scheduler._preempt_request
        scheduler.max_num_scheduled_tokens = budget
        pool.free_blocks(taken)
        engine.reset_prefix_cache()
