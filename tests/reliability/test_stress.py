"""A slow engine, a stalled one, a full queue, and an end in good order."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.reliability.frail import (
    DRAIN_SECONDS,
    OPTIONS,
    QUEUE,
    STALL_SECONDS,
    FrailServer,
    InFlight,
)
from tests.support.poll import poll_until
from tests.support.processes import Belongings
from tests.support.server import NAME
from tests.support.wellness import assert_well, exact_text

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def frail(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrailServer]:
    """Without a compiler, and so as with OPTIONS' --enforce-eager."""
    folder = tmp_path_factory.mktemp("frail")
    nothing = {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    with FrailServer(tiny_qwen2, folder, OPTIONS[1:], **nothing) as server:
        yield server


@pytest.fixture(scope="module")
def expected(frail: FrailServer) -> str:
    """The exact answer before anything has happened."""
    return exact_text(frail)


def test_without_a_compiler_every_answer_comes(frail: FrailServer) -> None:
    """vLLM compiles some functions in an eager engine too, those of log-probabilities among them,
    and at the first request that needs one."""
    body = {"model": NAME, "prompt": "One,", "max_tokens": 8, "ignore_eos": True, "logprobs": 2}
    for river in ({}, {"enabled": False}):
        answer = frail.post("/v1/completions", {**body, "river": river}).json()
        assert len(answer["choices"][0]["logprobs"]["top_logprobs"]) == 8
    assert frail.log.read_text().count("CXX=/bin/false is no C++ compiler") == 1


def test_a_long_prefill_is_progress(frail: FrailServer, expected: str) -> None:
    """20 steps of a prompt without a token, longer than a stall may last: ready all the time."""
    steps = 20
    frail.faults.order(f"sleep {1.6 * STALL_SECONDS / steps}")
    start = time.monotonic()
    request = InFlight(frail, False, prompt=[[7] * 32 * steps], max_tokens=1)
    try:
        statuses = set()
        while not request.started.wait(0.1):
            statuses.add(frail.get("/ready").status_code)
    finally:
        frail.faults.order("")
    assert time.monotonic() - start > 1.5 * STALL_SECONDS, "this shows nothing"
    assert statuses == {200}
    assert request.status == 200
    assert_well(frail, expected)


def test_a_stalled_engine_is_not_ready(frail: FrailServer, expected: str) -> None:
    """Stopped processes: /health stays vLLM's and knows nothing, /ready does; then all goes on."""
    children = Belongings.of(frail.process.pid).processes[1:]
    stopped = [p for p in children if "VLLM" in " ".join(p.cmdline())]
    assert stopped
    for process in stopped:
        process.suspend()
    try:
        # Idle: nothing waits, so nothing is wrong.
        time.sleep(STALL_SECONDS + 0.5)
        assert frail.get("/ready").status_code == 200
        request = InFlight(frail, False, max_tokens=4)
        response = poll_until(lambda: _not_ready(frail), 20, "/ready to say 503")
        assert response.json()["error"]["code"] == 503
        assert "no progress" in response.json()["error"]["message"]
        assert frail.get("/health").status_code == 200
    finally:
        for process in stopped:
            process.resume()
    request.join(60)
    assert request.status == 200
    poll_until(lambda: not _not_ready(frail), 10, "/ready to say 200 again")
    assert_well(frail, expected)


def test_a_full_queue_says_503(frail: FrailServer, expected: str) -> None:
    """vLLM's --max-num-queued-reqs: one too many is refused at once, streamed or not."""
    rejected = "vllm:admission_rejections_total"
    before = frail.sum_of(rejected)
    frail.faults.order("sleep 0.1")
    try:
        queue = [InFlight(frail, True, max_tokens=60) for _ in range(QUEUE)]
        for request in queue:
            request.started.wait(60)
        for stream in (False, True):
            body = {"model": NAME, "prompt": "Hi", "max_tokens": 2, "stream": stream}
            response = frail.post("/v1/completions", {**body, "river": {"threshold": 0.5}})
            assert response.status_code == 503
            assert response.json()["error"]["code"] == 503
        # n counts as many: there would be room for one at most.
        assert frail.sum_of(rejected) == before + 2
    finally:
        frail.faults.order("")
    for request in queue:
        request.join(60)
        assert request.lines[-2] == "data: [DONE]"
    assert_well(frail, expected)


def test_ctrl_c_lets_what_is_in_flight_finish(frail: FrailServer, expected: str) -> None:
    """A terminal interrupts every process at once; two SIGTERM after it change nothing. The last
    test of this server."""
    belongings = Belongings.of(frail.process.pid)
    frail.faults.order("sleep 0.1")
    requests = [InFlight(frail, stream, max_tokens=20) for stream in (True, False)]
    running = "vllm:num_requests_running"
    poll_until(lambda: frail.sum_of(running) == 2, 60, "both requests to run")
    os.killpg(frail.process.pid, signal.SIGINT)
    for _ in range(2):
        time.sleep(0.3)
        frail.process.send_signal(signal.SIGTERM)
    refused = _refused(frail)
    for request in requests:
        request.join(DRAIN_SECONDS)
        assert request.error is None
        assert request.status == 200
        assert not request.failed
        assert '"tokens_per_step"' in request.text
    assert requests[0].lines[-2] == "data: [DONE]"
    assert refused
    assert frail.process.wait(DRAIN_SECONDS) == 0
    belongings.assert_gone(10)


def _not_ready(server: FrailServer) -> httpx.Response | None:
    response = server.get("/ready")
    return response if response.status_code == 503 else None


def _refused(server: FrailServer) -> bool:
    """Whether a new request is turned away while others are drained."""
    try:
        response = server.post("/v1/completions", {"model": NAME, "prompt": "Hi", "max_tokens": 2})
    except httpx.TransportError:
        return True
    return response.status_code >= 500
