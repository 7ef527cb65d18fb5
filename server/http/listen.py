"""River's hooks in vLLM's engine client: requests, outputs and shutdown.

``patches.engine_client_is_heard`` installs them when the server starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np

from river_vllm import patches
from river_vllm.compat import EngineDeadError, GracefulHTTPError, RetryableRequestError
from river_vllm.modes import mode_that_made
from river_vllm.modes.mode import Mode, Numbers
from river_vllm.request import EXTRA_ARGS_KEY, as_sampled
from server.http.errors import SHUTTING_DOWN
from server.http.exchange import RiverExchange, current_exchange
from server.http.state import RiverState

STEPS = "river_steps"
"""Extra attribute of vLLM's request states and choices: exit layers not yet given to a client."""
CALL = "river_call"
"""Extra attribute of vLLM's request states: the value of ``_call``."""
_call: ContextVar[tuple[RiverExchange, int] | None] = ContextVar("river_call", default=None)
"""The exchange that calls the engine, and the index of the call's first choice in it."""

END_SECONDS = 15.0
"""Time for an engine without a drain to abort requests and clean up, as vLLM gives it on ROCm. The
engine gives its workers 9 s."""

_Method = Callable[..., Any]


@dataclass(slots=True)
class _Source:
    """Index of the engine whose outputs are processed: vLLM handles one engine at a time."""

    engine: int


def listen(engine_client: Any, state: RiverState) -> None:
    """Install the hooks: request settings, exit layers, token counts, progress, shutdown."""
    # The first engine by default: vLLM may already wait for outputs that the hook does not see.
    source = _Source(engine_client.engine_core.engine_ranks_managed[0])
    patches.engine_client_is_heard(
        engine_client,
        generate=lambda inner: _generate(inner, state),
        get_output_async=lambda inner: _arrival(inner, source, state),
        add_request=lambda inner: _request(inner, engine_client.output_processor),
        process_outputs=lambda inner: _outputs(
            inner, engine_client.output_processor, state, source
        ),
        shutdown=lambda inner: _shutdown(inner, engine_client, state),
    )


def _generate(generate: _Method, state: RiverState) -> _Method:
    def river_generate(
        prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        exchange = current_exchange.get()
        settings = as_sampled(exchange.settings if exchange else state.defaults, sampling_params)
        if exchange:
            exchange.settings = settings
        extra = dict(sampling_params.extra_args or {})
        extra[EXTRA_ARGS_KEY] = settings.as_extra_arg()
        sampling_params.extra_args = extra
        state.progress.arrival()
        first = exchange.next_call(sampling_params.n) if exchange else 0
        outputs = generate(prompt, sampling_params, request_id, **options)
        return _collect(outputs, state, exchange, first)

    return river_generate


async def _collect(
    outputs: AsyncGenerator[Any, None],
    state: RiverState,
    exchange: RiverExchange | None,
    first: int,
) -> AsyncGenerator[Any, None]:
    _call.set((exchange, first) if exchange else None)
    async with aclosing(outputs):
        async for output in outputs:
            for choice in output.outputs:
                if state.ending.begun and choice.finish_reason == "abort":
                    # The request arrived during the engine's last step before the shutdown.
                    raise EngineStopped
                choice.routed_experts = None
                if exchange is not None:
                    exchange.stream(first + choice.index, getattr(choice, STEPS, ()))
            yield output


def _request(add: _Method, processor: Any) -> _Method:
    def river_add_request(request: Any, *args: Any, **kwargs: Any) -> None:
        add(request, *args, **kwargs)
        if (state := processor.request_states.get(request.request_id)) is not None:
            state.__dict__[CALL] = _call.get()

    return river_add_request


def _arrival(get_output: _Method, source: _Source, state: RiverState) -> _Method:
    """Hook: note progress, and end quietly at a shutdown.

    vLLM releases the engine, in a thread, before it cancels the task that waits for outputs. A task
    that sees the dead engine would log a traceback and fail the requests that ``_shutdown``
    answers; it ends here."""

    async def river_get_output_async() -> Any:
        try:
            outputs = await get_output()
        except EngineDeadError:
            if state.ending.begun and not state.ending.failed:
                raise asyncio.CancelledError from None
            raise
        source.engine = outputs.engine_index
        # Counted without an output too: a long prompt takes many steps before its first token.
        state.progress.step()
        return outputs

    return river_get_output_async


def _outputs(process: _Method, processor: Any, state: RiverState, source: _Source) -> _Method:
    def river_process_outputs(engine_core_outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        states = processor.request_states
        known = [(o, states[o.request_id]) for o in engine_core_outputs if o.request_id in states]
        result = process(engine_core_outputs, *args, **kwargs)
        step: dict[Mode, list[Numbers]] = {}
        for output, request in known:
            # A stop string trims new_token_ids in place, so tokens past it are not counted.
            depths = output.routed_experts
            if depths is not None and (tokens := len(output.new_token_ids)):
                depths = depths[:tokens]
                mode = mode_that_made(depths)
                step.setdefault(mode, []).append(depths)
                _hand_over(request, mode.trace(depths))
                if call := getattr(request, CALL, None):
                    exchange, first = call
                    exchange.add(first + request.request_index, depths)
        # One call per step and mode: with many users this runs between two steps' tokens.
        for mode, numbers in step.items():
            summary = mode.summary()
            summary.add(np.concatenate(numbers))
            state.metrics.count(summary, source.engine)
        return result

    state.progress.watch(processor.has_unfinished_requests)
    return river_process_outputs


def _hand_over(request: Any, layers: list[int]) -> None:
    """Attach a step's exit layers to the output that waits for the client.

    vLLM hands over the whole array when a choice finishes; a stream needs each token's layer with
    it. vLLM merges an output into an earlier one that was not fetched. With ``stream_interval`` a
    step may have no output: its layers wait for the next one.
    """
    queue = getattr(request, "queue", None)
    if queue is None:
        return
    waiting: list[int] = request.__dict__.setdefault(STEPS, [])
    waiting += layers
    for choice in getattr(queue.output, "outputs", ()):
        if choice.index == request.request_index:
            choice.__dict__.setdefault(STEPS, []).extend(waiting)
            waiting.clear()


def _shutdown(shutdown: _Method, engine_client: Any, state: RiverState) -> _Method:
    """Hook: note the shutdown, and answer the remaining requests with an error.

    While the engine drains, vLLM's HTTP server goes on listening; it answers aborted requests with
    an empty text and status 200. Without a drain the engine ends at once; vLLM leaves its requests
    waiting, and its HTTP server waits for them. After status 503 a proxy sends a request to another
    server. Requests of a failed engine get another status: one of them may be the cause.
    """

    def river_shutdown(timeout: float | None = None) -> Any:
        state.ending.begin(failed=bool(engine_client.errored))
        # Missing before the first request; vLLM may call this from another thread.
        handler = getattr(engine_client, "output_handler", None)
        try:
            # With 0 (no drain) vLLM kills the engine before it has cleaned up.
            return shutdown(timeout=END_SECONDS if timeout == 0 else timeout)
        finally:
            if handler is not None and not (loop := handler.get_loop()).is_closed():
                left = engine_client.output_processor.propagate_error
                error = EngineDeadError() if state.ending.failed else EngineStopped()
                loop.call_soon_threadsafe(left, error)

    return river_shutdown


class EngineStopped(GracefulHTTPError, RetryableRequestError):
    """Status 503 for requests that are unanswered at a shutdown.

    vLLM's engine client passes ``GracefulHTTPError`` on; its streams log a traceback for any error
    but ``RetryableRequestError``.
    """

    def __init__(self) -> None:
        super().__init__(SHUTTING_DOWN, HTTPStatus.SERVICE_UNAVAILABLE)
