"""What River takes from vLLM's engine client, on a fake of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from river_vllm.compat import EngineDeadError, GracefulHTTPError, RetryableRequestError
from server.http.exchange import RiverExchange, current_exchange
from server.http.listen import END_SECONDS, listen
from server.http.state import RiverState
from tests.unit.http.support import L, Metrics, exchange, river_state


def choice(index: int, depths: list[int] | None) -> Any:
    array = None if depths is None else np.array(depths, dtype=np.int16)
    return SimpleNamespace(index=index, routed_experts=array)


class Client:
    """Plays vLLM's ``AsyncLLM``: yields the outputs it was given."""

    def __init__(self, *outputs: list[Any]) -> None:
        self.outputs = [SimpleNamespace(outputs=choices) for choices in outputs]
        self.closed = 0
        self.errored = False
        self.ends: list[Any] = []
        self.output_processor = Processor()
        self.engine_core = EngineCore()

    def shutdown(self, timeout: float | None = None) -> None:
        self.ends.append(timeout)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str
    ) -> AsyncGenerator[Any, None]:
        for index in range(sampling_params.n):
            request = SimpleNamespace(request_id=f"{request_id}-{index}")
            self.output_processor.add_request(request, index)
        try:
            for output in self.outputs:
                yield output
        finally:
            self.closed += 1


class EngineCore:
    """Plays vLLM's client of two engine cores: the outputs of the second have come."""

    engine_ranks_managed = (1, 2)

    async def get_output_async(self) -> Any:
        return SimpleNamespace(engine_index=2)


class Processor:
    """Plays vLLM's ``OutputProcessor``: a request ends with its first output."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {"a": 1, "b": 1}

    def add_request(self, request: Any, index: int) -> None:
        self.request_states[request.request_id] = SimpleNamespace(request_index=index)

    def process_outputs(self, outputs: list[Any]) -> None:
        for output in outputs:
            self.request_states.pop(output.request_id, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.request_states)


@pytest.fixture
def state() -> RiverState:
    return river_state()


@pytest.fixture
def client(state: RiverState) -> Client:
    """Listened to, for ``state``."""
    made = Client()
    listen(made, state)
    return made


def params(n: int = 1) -> Any:
    return SimpleNamespace(n=n, extra_args=None)


@pytest.fixture
def current() -> Iterator[RiverExchange]:
    made = exchange(trace=True)
    token = current_exchange.set(made)
    yield made
    current_exchange.reset(token)


async def drain(generator: AsyncGenerator[Any, None]) -> list[Any]:
    return [output async for output in generator]


def test_prompts_of_one_request_are_numbered_in_the_order_of_their_calls(
    state: RiverState, current: RiverExchange, client: Client
) -> None:

    async def run() -> None:
        a = client.generate("a", params(n=2), "a")
        b = client.generate("b", params(n=2), "b")
        await drain(b)
        await drain(a)
        ids = ["b-1", "a-0", "a-1", "b-0"]
        step = [core_output(name, [7], [i]) for name, i in zip(ids, [4, 1, 2, 3], strict=True)]
        client.output_processor.process_outputs(step)

    asyncio.run(run())
    assert [current.trace_of(i) for i in range(4)] == [[1], [2], [3], [4]]


def test_tokens_of_a_request_that_is_aborted_are_in_its_report(
    client: Client, current: RiverExchange
) -> None:
    """vLLM hands a choice's numbers over when it finishes, and this one never does."""
    client.outputs = [SimpleNamespace(outputs=[choice(0, None)])] * 2

    async def run() -> None:
        outputs = client.generate("p", params(), "id")
        await anext(outputs)
        client.output_processor.process_outputs([core_output("id-0", [7, 8], [3, 5])])
        await outputs.aclose()

    asyncio.run(run())
    assert client.closed == 1
    assert current.report()["exit_layers"] == {"3": 1, "5": 1}


def core_output(request_id: str, tokens: list[int], depths: list[int] | None) -> Any:
    array = None if depths is None else np.array(depths, dtype=np.int16)
    return SimpleNamespace(request_id=request_id, new_token_ids=tokens, routed_experts=array)


def test_tokens_are_counted_for_the_engine_that_made_them(state: RiverState, client: Client):
    client.output_processor.process_outputs([core_output("a", [7], [3])])
    assert asyncio.run(client.engine_core.get_output_async()).engine_index == 2
    client.output_processor.process_outputs([core_output("b", [7], [3])])
    assert isinstance(state.metrics, Metrics)
    assert state.metrics.engines == [1, 2]


def test_a_steps_exit_layers_wait_beside_its_tokens(state: RiverState, client: Client) -> None:
    """A step without an output keeps them, one that is merged into a waiting output adds them."""
    request = SimpleNamespace(request_index=1, queue=SimpleNamespace(output=None))
    processor = client.output_processor
    other, mine = choice(0, None), choice(1, None)

    def step(depths: list[int], *choices: Any) -> None:
        # The output of this step waits for the client, where there is one.
        request.queue.output = SimpleNamespace(outputs=list(choices)) if choices else None
        processor.request_states = {"a": request}
        processor.process_outputs([core_output("a", [7] * len(depths), depths)])

    step([-L])
    step([3], other, mine)
    step([4, 5], other, mine)
    assert mine.river_steps == [L, 3, 4, 5]
    assert not hasattr(other, "river_steps")
    later = choice(1, None)
    step([6], later)
    assert later.river_steps == [6]


@pytest.mark.parametrize("failed", [False, True])
def test_the_first_shutdown_says_why(state: RiverState, client: Client, failed: bool) -> None:
    """vLLM calls it again while it cleans up, and its client counts as failed by then."""
    assert not state.ending.begun
    client.errored = failed
    client.shutdown(timeout=7)
    client.errored = True
    client.shutdown()
    assert (state.ending.begun, state.ending.failed) == (True, failed)
    assert client.ends == [7, None]


def test_an_engine_that_drains_nothing_has_time_to_clean_up(state: RiverState, client: Client):
    """vLLM sends SIGKILL after 0 seconds: shared memory and semaphores stay behind."""
    client.shutdown(timeout=0)
    assert client.ends == [END_SECONDS]


@pytest.mark.parametrize(
    ("stopped", "failed", "seen"),
    [
        (True, False, asyncio.CancelledError),
        (True, True, EngineDeadError),
        (False, False, EngineDeadError),
    ],
)
def test_an_engine_that_was_told_to_stop_has_not_died(
    state: RiverState, stopped: bool, failed: bool, seen: type[BaseException]
) -> None:
    """vLLM's task for outputs logs a traceback for any other exception."""
    client = Client()

    async def dead() -> Any:
        raise EngineDeadError

    client.engine_core.get_output_async = dead  # type: ignore[method-assign]
    listen(client, state)
    client.errored = failed
    if stopped:
        client.shutdown()
    with pytest.raises(seen):
        asyncio.run(client.engine_core.get_output_async())


@pytest.mark.parametrize("begun", [False, True])
def test_what_the_engine_rejects_at_its_end_is_no_empty_answer(state: RiverState, begun: bool):
    """Requests that arrived during its last step; an abort at any other time is the client's."""
    aborted = choice(0, None)
    aborted.finish_reason = "abort"
    client = Client([aborted])
    listen(client, state)
    if begun:
        client.shutdown()
    answer = drain(client.generate("prompt", params(), "id"))
    with pytest.raises(GracefulHTTPError) if begun else contextlib.nullcontext():
        assert asyncio.run(answer) == client.outputs
    assert client.closed == 1


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_requests_that_a_stopped_engine_leaves_get_an_error(
    state: RiverState, broken: bool, failed: bool
) -> None:
    """vLLM stops its engine from a thread; the requests wait in the loop. A prompt that ends an
    engine must not reach the next one, to which a proxy sends what status 503 answers."""
    client = Client()
    client.errored = failed
    told: list[Exception] = []

    def stop(timeout: float | None = None) -> None:
        assert not told
        if broken:
            raise RuntimeError("it does not stop")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        client.output_handler = SimpleNamespace(get_loop=lambda: loop)  # type: ignore[attr-defined]
        client.output_processor.propagate_error = told.append  # type: ignore[attr-defined]
        client.shutdown = stop  # type: ignore[method-assign]
        listen(client, state)
        with contextlib.suppress(RuntimeError):
            await asyncio.to_thread(client.shutdown)
        await asyncio.sleep(0)

    asyncio.run(run())
    (error,) = told
    if failed:
        assert isinstance(error, EngineDeadError)
    else:
        assert isinstance(error, GracefulHTTPError) and "shutting down" in str(error)
        assert isinstance(error, RetryableRequestError), "a stream would log a traceback"
        assert error.http_status == error.status_code == 503
    # vLLM shuts down once more when the loop is gone.
    client.shutdown = stop  # type: ignore[method-assign]
    told.clear()
    listen(client, state)
    with contextlib.suppress(RuntimeError):
        client.shutdown()
    assert told == []
