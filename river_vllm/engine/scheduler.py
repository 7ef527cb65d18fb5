"""vLLM's scheduler with exit layers on its outputs, and exits' K/V kept from exact requests.

vLLM finds reusable blocks by a hash over their tokens (``v1/core/kv_cache_utils.py``). Blocks that
the river may have written get a salted hash: only a request with the same settings computes it.
Prompt blocks from the backbone stay shared by all requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

from river_vllm import patches
from river_vllm.compat import init_logger
from river_vllm.config import Affects, RiverConfig, river_config_of
from river_vllm.modes import mode_of
from river_vllm.modes.mode import Numbers
from river_vllm.request import (
    EXTRA_ARGS_KEY,
    RiverSettings,
    default_settings,
    settings_of,
    unreachable,
)

logger = init_logger("vllm.river")

_DEPTHS = "river"
"""Extra attribute of vLLM's ``ModelRunnerOutput``, a plain dataclass that is pickled whole."""


def put_depths(output: Any, depths: dict[str, int]) -> Any:
    """Put ``depths`` (request id → signed depth) on the output of a runner's ``sample_tokens``.

    vLLM's asynchronous output holds the final one in ``_model_runner_output``
    (``v1/worker/gpu_model_runner.py``).
    """
    if output is not None:
        setattr(getattr(output, "_model_runner_output", output), _DEPTHS, depths)
    return output


def depths_of(output: Any) -> dict[str, int]:
    """The depths that ``put_depths`` put there; empty for a step without a forward pass."""
    return getattr(output, _DEPTHS, None) or {}


class RiverSchedulerMixin:
    """Goes before one of vLLM's scheduler classes."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        patches.the_server_answers_ctrl_c()
        self._river_config = river_config_of(kwargs["vllm_config"])
        model_config = kwargs["vllm_config"].model_config
        self._river_layers = model_config.get_total_num_hidden_layers()
        self._river_defaults = default_settings(self._river_config)
        if self.num_spec_tokens:
            # For CUDA graphs vLLM gives every request of one new token K placeholder drafts, unless
            # the number of drafts depends on the batch size.
            self.dynamic_sd_lookup = [self.num_spec_tokens] * (self.max_num_running_reqs + 1)

    def add_request(self: Any, request: Any) -> None:
        params = request.sampling_params
        session = self.requests.get(request.request_id)
        if session is not None:
            # Streamed input: blocks are hashed by the river field of its first part, so it holds.
            later, first = params.extra_args or {}, session.sampling_params.extra_args or {}
            extra = {key: value for key, value in later.items() if key != EXTRA_ARGS_KEY}
            extra |= {key: value for key, value in first.items() if key == EXTRA_ARGS_KEY}
            params.extra_args = extra or None
        settings = settings_of(params, self._river_defaults)
        if error := unreachable(settings, self._river_config, self._river_layers):
            # The server refuses such a request; one made in Python is answered, with a warning.
            logger.warning("request %s: %s", request.request_id, error)
        request.river_mode = mode_of(settings)
        isolate(request, settings, self._river_config, self.hash_block_size)
        super().add_request(request)  # type: ignore[misc]

    def _update_request_as_session(self: Any, session: Any, update: Any) -> None:
        super()._update_request_as_session(session, update)  # type: ignore[misc]
        # The new parameters may forbid drafts, or allow them again.
        session.river_mode = mode_of(settings_of(update.sampling_params, self._river_defaults))

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        sampled = model_runner_output.sampled_token_ids
        drafts = scheduler_output.scheduled_spec_decode_tokens
        numbers: dict[str, Callable[[int], Numbers]] = {}
        # Read before vLLM's update, which forgets requests that have ended.
        for request_id, depth in depths_of(model_runner_output).items():
            if (request := self.requests.get(request_id)) is not None:
                brought = len(sampled[model_runner_output.req_id_to_index[request_id]])
                numbers[request_id] = partial(
                    request.river_mode.numbers,
                    depth=depth,
                    drafted=len(drafts.get(request_id, ())),
                    kept=max(0, brought - 1),
                    decode=request.num_output_tokens > 0,
                )
        outputs = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )
        for client in outputs.values():
            for output in client.outputs:
                number = numbers.get(output.request_id)
                if number is not None and output.new_token_ids:
                    output.routed_experts = number(len(output.new_token_ids))
        return outputs

    def _handle_stopped_request(self: Any, request: Any) -> bool:
        # Streamed input continues from the computed tokens; vLLM assumes that the last token is
        # not computed. Accepted drafts are, and may lie behind the answer's end.
        if request.resumable and self.num_spec_tokens:
            request.num_computed_tokens = min(request.num_computed_tokens, request.num_tokens - 1)
        return super()._handle_stopped_request(request)  # type: ignore[misc]


class RiverScheduler:
    """Named by ``scheduler_cls``; makes River's synchronous or asynchronous scheduler."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler

        asynchronous = kwargs["vllm_config"].scheduler_config.async_scheduling
        base = AsyncScheduler if asynchronous else Scheduler
        return type(f"River{base.__name__}", (RiverSchedulerMixin, base), {})(*args, **kwargs)


def isolate(
    request: Any, settings: RiverSettings, config: RiverConfig, hash_block_size: int
) -> None:
    """Salt the block hashes of ``request``, vLLM's and not scheduled yet, from the first block that
    an exit may touch; ``hash_block_size`` is the tokens per hash."""
    leaves_kv = mode_of(settings).leaves_kv(settings) or config.ends_early
    if not leaves_kv or request._block_hasher is None:
        return
    in_4_bit = config.ends_early or config.prefill == "sequence"
    exact_tokens = 0 if in_4_bit else request.num_prompt_tokens
    exact_blocks = exact_tokens // hash_block_size
    hasher = _salted(request._block_hasher, salt(settings, config), exact_blocks)
    patches.block_hashes_come_from(request, hasher)


def salt(settings: RiverSettings, config: RiverConfig) -> bytes:
    """The settings that the river's K/V depends on, as bytes to hash. The engine's are part of
    them: engines may share a connector's store."""
    dial = f"river:{settings.threshold!r}:{settings.min_layers}"
    return f"{dial}:{config.what_affects(Affects.KV)}".encode()


def _salted(inner: Callable[[Any], list[bytes]], salt: bytes, exact_blocks: int) -> Any:
    """Hashes a request's blocks as ``inner`` does, and salts the hashes from ``exact_blocks`` on.

    It holds no reference to the request (vLLM relies on reference counting to free it).
    """
    plain: list[bytes] = []

    def hasher(request: Any) -> list[bytes]:
        salted = request.block_hashes
        done = len(salted)
        # vLLM chains a block's hash on the previous one. The plain hash is chained here, so that
        # a block's hash does not depend on how many tokens arrived at once.
        del plain[done:]
        request.block_hashes = plain
        try:
            new = inner(request)
        finally:
            request.block_hashes = salted
        plain.extend(new)
        return [
            hashlib.sha256(salt + value).digest()[: len(value)] if block >= exact_blocks else value
            for block, value in enumerate(new, done)
        ]

    return hasher
