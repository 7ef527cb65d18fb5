"""An engine whose server was killed ends, and takes its workers with it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from river_vllm.plugin import end_with_parent
from tests.support.processes import Belongings

SERVER = """
import multiprocessing, signal, time
from river_vllm.plugin import end_with_parent

def worker():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(120)

def engine(started):
    signal.signal(signal.SIGTERM, lambda *_: None)  # as vLLM's while it is being constructed
    multiprocessing.get_context("spawn").Process(target=worker, name="VllmWorker-0").start()
    end_with_parent(grace=0.2)
    started.set()
    while True:
        time.sleep(120)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    context.Process(target=engine, args=(started,), name="EngineCore_DP1").start()
    started.wait()
    print("loading", flush=True)
    time.sleep(120)
"""


def test_an_engine_ends_with_its_server(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    server = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    belongings = Belongings([], set())
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "loading\n"
        belongings = Belongings.of(server.pid)
        assert len(belongings.processes) >= 3, "server, engine and worker"
        server.kill()
        server.wait()
        belongings.assert_gone(20)
    finally:
        server.kill()
        belongings.kill()


def test_nobody_else_is_watched() -> None:
    """The process of a test was not started as an engine, whoever ends."""
    before = threading.active_count()
    end_with_parent()
    assert threading.active_count() == before
