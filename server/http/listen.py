"""River's hooks in vLLM's engine client: requests, outputs and shutdown.

``patches.engine_client_is_heard`` installs them when the server starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
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


def listen(engine_client: Any, state: RiverState) -> None:
    """Install the hooks: request settings, exit layers, token counts, progress, shutdown."""
    hooks = _Hooks(engine_client, state)
    patches.engine_client_is_heard(
        engine_client,
        generate=hooks.generate,
        get_output_async=hooks.get_output_async,
        add_request=hooks.add_request,
        process_outputs=hooks.process_outputs,
        shutdown=hooks.shutdown,
    )


class _Hooks:
    """River's part in each method of an engine client; ``inner`` is vLLM's own method."""

    def __init__(self, engine_client: Any, state: RiverState) -> None:
        self._client = engine_client
        self._processor = engine_client.output_processor
        self._state = state
        # The engine whose outputs are processed: vLLM handles one at a time. By default the first:
        # vLLM may already wait for outputs that the hook does not see.
        self._engine: int = engine_client.engine_core.engine_ranks_managed[0]
        state.progress.watch(self._processor.has_unfinished_requests)

    def generate(
        self, inner: _Method, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """Give the engine a request's settings, and the exchange the outputs."""
        exchange, state = current_exchange.get(), self._state
        settings = as_sampled(exchange.settings if exchange else state.defaults, sampling_params)
        if exchange:
            exchange.settings = settings
        extra = dict(sampling_params.extra_args or {})
        extra[EXTRA_ARGS_KEY] = settings.as_extra_arg()
        sampling_params.extra_args = extra
        state.progress.arrival()
        first = exchange.next_call(sampling_params.n) if exchange else 0
        return self._collect(inner(prompt, sampling_params, request_id, **options), exchange, first)

    async def _collect(
        self, outputs: AsyncGenerator[Any, None], exchange: RiverExchange | None, first: int
    ) -> AsyncGenerator[Any, None]:
        _call.set((exchange, first) if exchange else None)
        async with aclosing(outputs):
            async for output in outputs:
                for choice in output.outputs:
                    if self._state.ending.begun and choice.finish_reason == "abort":
                        # The request arrived during the engine's last step before the shutdown.
                        raise EngineStopped
                    choice.routed_experts = None
                    if exchange is not None:
                        exchange.stream(first + choice.index, getattr(choice, STEPS, ()))
                yield output

    def add_request(self, inner: _Method, request: Any, *args: Any, **kwargs: Any) -> None:
        """Note which exchange a request of the engine belongs to."""
        inner(request, *args, **kwargs)
        if (state := self._processor.request_states.get(request.request_id)) is not None:
            state.__dict__[CALL] = _call.get()

    async def get_output_async(self, inner: _Method) -> Any:
        """Note progress, and end quietly at a shutdown.

        vLLM releases the engine, in a thread, before it cancels the task that waits for outputs. A
        task that sees the dead engine would log a traceback and fail the requests that ``shutdown``
        answers; it ends here."""
        try:
            outputs = await inner()
        except EngineDeadError:
            if self._state.ending.begun and not self._state.ending.failed:
                raise asyncio.CancelledError from None
            raise
        self._engine = outputs.engine_index
        # Counted without an output too: a long prompt takes many steps before its first token.
        self._state.progress.step()
        return outputs

    def process_outputs(
        self, inner: _Method, engine_core_outputs: list[Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Count the exit layers of a step's tokens, and hand them over to their requests."""
        states = self._processor.request_states
        known = [(o, states[o.request_id]) for o in engine_core_outputs if o.request_id in states]
        result = inner(engine_core_outputs, *args, **kwargs)
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
            self._state.metrics.count(summary, self._engine)
        return result

    def shutdown(self, inner: _Method, timeout: float | None = None) -> Any:
        """Note the shutdown, and answer the remaining requests with an error.

        While the engine drains, vLLM's HTTP server goes on listening; it answers aborted requests
        with an empty text and status 200. Without a drain the engine ends at once; vLLM leaves its
        requests waiting, and its HTTP server waits for them. After status 503 a proxy sends a
        request to another server. Requests of a failed engine get another status: one of them may
        be the cause.
        """
        ending = self._state.ending
        ending.begin(failed=bool(self._client.errored))
        # Missing before the first request; vLLM may call this from another thread.
        handler = getattr(self._client, "output_handler", None)
        try:
            # With 0 (no drain) vLLM kills the engine before it has cleaned up.
            return inner(timeout=END_SECONDS if timeout == 0 else timeout)
        finally:
            if handler is not None and not (loop := handler.get_loop()).is_closed():
                error = EngineDeadError() if ending.failed else EngineStopped()
                loop.call_soon_threadsafe(self._processor.propagate_error, error)


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


class EngineStopped(GracefulHTTPError, RetryableRequestError):
    """Status 503 for requests that are unanswered at a shutdown.

    vLLM's engine client passes ``GracefulHTTPError`` on; its streams log a traceback for any error
    but ``RetryableRequestError``.
    """

    def __init__(self) -> None:
        super().__init__(SHUTTING_DOWN, HTTPStatus.SERVICE_UNAVAILABLE)
