"""A part of the engine dies: clients are told, the process ends, nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.reliability.frail import OPTIONS, FrailServer, InFlight
from tests.support.forms import form
from tests.support.poll import poll_until
from tests.support.processes import Belongings
from tests.support.wellness import exact_text

pytestmark = pytest.mark.engine

END_SECONDS = 40
"""vLLM looks for a dead engine every 5 s; its own processes get 5 s to end."""


def _raise(server: FrailServer, belongings: Belongings) -> None:
    server.faults.order("raise")


def _kill_engine(server: FrailServer, belongings: Belongings) -> None:
    belongings.named("VLLM::EngineCore").kill()


def _kill_worker(server: FrailServer, belongings: Belongings) -> None:
    belongings.named("VLLM::Worker").kill()


Crash = Callable[[FrailServer, Belongings], None]
CRASHES: list[Crash] = form(short=[_raise], long=[_raise, _kill_worker, _kill_engine])


def _interrupt(server: FrailServer, belongings: Belongings) -> None:
    os.killpg(server.process.pid, signal.SIGINT)


@pytest.fixture(scope="module")
def servers(
    tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Crash, FrailServer]]:
    """One for each end, started at once; the interrupted one without a drain."""
    options = {_interrupt: (*OPTIONS, "--shutdown-timeout", "0")}
    made = {
        end: FrailServer(tiny_qwen2, tmp_path_factory.mktemp("crash"), options.get(end, OPTIONS))
        for end in (*CRASHES, _interrupt)
    }
    for server in made.values():
        server.launch()
    yield made
    for server in made.values():
        server.stop()


@pytest.mark.parametrize("crash", CRASHES, ids=lambda f: f.__name__.strip("_"))
def test_a_dead_engine(
    servers: dict[Crash, FrailServer], tiny_qwen2: Path, tmp_path: Path, crash: Crash
) -> None:
    with servers[crash] as server:
        assert exact_text(server)
        belongings = Belongings.of(server.process.pid)
        try:
            server.faults.order("sleep 0.05")
            requests = [InFlight(server, stream) for stream in (True, True, False)]
            for request in requests[:2]:
                assert request.started.wait(60)
            crash(server, belongings)
            for request in requests:
                request.join(END_SECONDS)
                assert request.failed, "a client took a cut answer for a whole one"
                if request.status not in (None, 200):
                    assert request.status >= 500
                    assert '"error"' in request.text
            for path in ("/health", "/ready"):
                poll_until(lambda path=path: _says_dead(server, path), 10, f"{path} to say so")
            status = server.process.wait(END_SECONDS)
            assert status != 0, "a supervisor would think that all is well"
            belongings.assert_gone(20)
        finally:
            belongings.kill()
    if form(False, True):
        with FrailServer(tiny_qwen2, tmp_path / "again") as server:
            assert exact_text(server)


def test_ctrl_c_with_requests_in_flight(servers: dict[Crash, FrailServer]) -> None:
    """A terminal interrupts every process at once; without a drain nobody may wait for ever."""
    with servers[_interrupt] as server:
        belongings = Belongings.of(server.process.pid)
        try:
            server.faults.order("sleep 0.05")
            requests = [InFlight(server, stream) for stream in (True, False)]
            assert requests[0].started.wait(60)
            before = len(server.log.read_text())
            _interrupt(server, belongings)
            for request in requests:
                request.join(END_SECONDS)
                assert request.failed, "a client took a cut answer for a whole one"
            assert server.process.wait(END_SECONDS) == 0
            belongings.assert_gone(20)
        finally:
            belongings.kill()
        said = server.log.read_text()[before:]
        # Of nanobind's modules, of shared memory and semaphores; of an engine that lost its worker.
        assert not re.findall("leaked|Traceback", said), said
        assert said.endswith("River: the server has stopped\n")


@pytest.mark.skipif(form(True, False), reason="long form only (make reliability)")
def test_the_engine_ends_with_its_server(tiny_qwen2: Path, tmp_path: Path) -> None:
    """SIGKILL gives the API server no chance to tell its children."""
    with FrailServer(tiny_qwen2, tmp_path) as server:
        belongings = Belongings.of(server.process.pid)
        try:
            request = InFlight(server, True)
            assert request.started.wait(60)
            server.process.kill()
            request.join(20)
            assert request.failed
            belongings.assert_gone(END_SECONDS)
        finally:
            belongings.kill()


@pytest.mark.skipif(form(True, False), reason="long form only (make reliability)")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_ended_while_it_loads(tiny_qwen2: Path, tmp_path: Path, number: signal.Signals) -> None:
    server = FrailServer(tiny_qwen2, tmp_path)
    server.launch()
    belongings = Belongings([], set())
    try:
        poll_until(lambda: "(EngineCore pid" in server.tail(400), 120, "the engine to load")
        belongings = Belongings.of(server.process.pid)
        server.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(END_SECONDS)
        if number == signal.SIGTERM:
            assert server.process.poll() == 128 + signal.SIGTERM
            assert "told to stop while the model was loading" in server.tail(400)
        belongings.assert_gone(END_SECONDS)
    finally:
        belongings.kill()
        server.stop()


def _says_dead(server: FrailServer, path: str) -> bool:
    try:
        return server.get(path).status_code == 503
    except httpx.TransportError:
        return True  # it has ended already
