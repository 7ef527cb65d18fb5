"""Programs under limits, by the best way this machine has and by the plainest.

Limits that a program must reach are low, those that it must not reach are high, so that a busy
machine changes no result.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import pytest

from server.bench.errors import BenchError
from server.evaluate.sandbox import isolation as isolation_module
from server.evaluate.sandbox.isolation import WAYS, Isolation, find_isolation
from server.evaluate.sandbox.limits import FILE_BYTES, PROCESSES, Limits
from server.evaluate.sandbox.program import ProgramResult, SandboxError, run_program

PLAIN = WAYS[-1]


@pytest.fixture(scope="module")
def best() -> Isolation:
    return asyncio.run(find_isolation())


@pytest.fixture(params=["best", "plain"])
def way(request: pytest.FixtureRequest, best: Isolation) -> Isolation:
    return best if request.param == "best" else PLAIN


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs get their folders: this test's, so that their processes can be told."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def run(source: str, way: Isolation, **limits: float) -> ProgramResult:
    return asyncio.run(run_program(source, Limits(**limits), way))


def processes(folder: Path) -> list[str]:
    """Command lines of living processes of programs in ``folder``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:  # it has just ended
            continue
        if str(folder) in words:
            found.append(words)
    return found


def wait_for_none(folder: Path) -> None:
    end = time.monotonic() + 20
    while left := processes(folder):
        assert time.monotonic() < end, left
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("source", "result", "detail"),
    [
        ("x = 1", "passed", ""),
        ("assert 1 == 2, 'no'", "AssertionError", "no"),
        ("def f(:", "SyntaxError", "invalid syntax"),
        ("def f(): return f()\nf()", "RecursionError", "recursion"),
        ("import sys; sys.exit(0)", "SystemExit", "0"),
        ("import os; os._exit(0)", "left early", "before its tests"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV", ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "killed by SIGKILL", ""),
        ("input()", "EOFError", "EOF"),
        ("raise ValueError('\\udc80')", "ValueError", "\\udc80"),
        ("raise ValueError('x' * 10**6)", "ValueError", "x" * 300),
        ("class E(Exception):\n def __str__(self): raise self\nraise E", "E", ""),
        ("import threading as t; t.Thread(target=t.Event().wait).start()", "passed", ""),
    ],
)
def test_how_a_program_ends(source: str, result: str, detail: str):
    found = run(source, PLAIN)
    assert (found.result, detail in found.detail) == (result, True), found


def test_a_program_is_a_module_but_not_the_main_one(way: Isolation):
    source = """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class A:
    x: int
assert A(1).x == 1
def f(x: undefined): pass
if __name__ == "__main__":
    raise ValueError
"""
    assert run(source, way).result == "passed"


def test_annotations_are_evaluated_unless_the_program_says_otherwise():
    """The supervisor's own ``__future__`` import is not passed on."""
    assert run("def f(x: undefined): pass", PLAIN).result == "NameError"


def test_cpu_time(way: Isolation):
    found = run("while True: pass", way, cpu_seconds=1, wall_seconds=300)
    assert found.result == "CPU time"
    assert 0.5 < found.cpu_seconds < 4


def test_cpu_time_of_a_program_that_ignores_the_signal(best: Isolation):
    source = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run(source, best, cpu_seconds=1, wall_seconds=300).result == "CPU time"


def test_wall_time(way: Isolation):
    started = time.monotonic()
    assert run("import time; time.sleep(600)", way, wall_seconds=1).result == "wall time"
    assert time.monotonic() - started < 300


def test_infinite_output_goes_nowhere(folder: Path):
    source = "import sys\nwhile True: print('y' * 10**5); print('z', file=sys.stderr)"
    assert run(source, PLAIN, cpu_seconds=1, wall_seconds=300).result == "CPU time"
    assert list(folder.iterdir()) == []


def test_memory(way: Isolation):
    assert run("x = bytearray(100 << 20)", way, memory_mib=512).result == "passed"
    assert run("x = bytearray(600 << 20)", way, memory_mib=512).result == "MemoryError"


def test_files(way: Isolation, folder: Path):
    """Within the limit in its own folder; what was written is gone afterwards."""
    source = f"""
import os
assert os.listdir() == ["program.py"]
with open("small", "wb") as file:
    file.write(b"x" * {FILE_BYTES})
try:
    with open("large", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)
except OSError:
    pass
assert os.path.getsize("large") <= {FILE_BYTES}
"""
    assert run(source, way).result == "passed"
    assert list(folder.iterdir()) == []


def test_environment(way: Isolation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    source = """
import os, sys
assert set(os.environ) <= {"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE"}, dict(os.environ)
assert os.getcwd() == os.environ["HOME"] and "" not in sys.path and "/nowhere" not in sys.path
"""
    assert run(source, way).result == "passed"


def test_network(way: Isolation, mock):
    server = mock(lambda body: None)
    port = int(server.url.rpartition(":")[2])
    source = f"import socket; socket.create_connection(('127.0.0.1', {port}), 60)"
    found = run(source, way)
    assert (found.result == "passed") is way.network
    if not way.network:
        assert "unreachable" in found.detail


FORKS = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        {first}
        time.sleep(600)
"""


def test_processes_end_with_their_program(way: Isolation, folder: Path):
    assert run(FORKS.format(first="pass"), way).result == "passed"
    wait_for_none(folder)


def test_processes_in_sessions_of_their_own_end_too(best: Isolation, folder: Path):
    if best.network:
        pytest.skip("no namespaces on this machine")
    assert run(FORKS.format(first="os.setsid()"), best).result == "passed"
    wait_for_none(folder)


def test_a_copy_of_the_program_has_no_say(way: Isolation):
    """The child passes, the program itself does not."""
    source = "import os\nif os.fork() == 0: pass\nelse: os.wait(); raise ValueError"
    assert run(source, way).result == "ValueError"


def test_number_of_processes(best: Isolation):
    limit = run("import resource as r; raise ValueError(r.getrlimit(r.RLIMIT_NPROC)[0])", best)
    assert (limit.detail == str(PROCESSES)) is best.counts_processes


def test_no_limit_is_raised_above_the_callers(best: Isolation):
    source = "import resource as r; raise ValueError(r.getrlimit(r.RLIMIT_NOFILE), r.getrlimit(0))"
    assert run(source, best, cpu_seconds=2).detail == "((64, 64), (2, 3))"


@pytest.mark.parametrize("words", [("false",), ("/does/not/exist",)])
def test_a_supervisor_that_does_not_report_says_nothing_about_the_program(words: tuple[str, ...]):
    with pytest.raises(SandboxError):
        run("x = 1", Isolation(words))


def test_cancelling_ends_the_program(way: Isolation, folder: Path):
    started = folder / "started"
    source = f"open({str(started)!r}, 'w'); import time; time.sleep(600)"

    async def cancel() -> None:
        task = asyncio.create_task(run_program(source, Limits(wall_seconds=600), way))
        async with asyncio.timeout(60):
            while not started.exists():
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    wait_for_none(folder)


def test_the_first_way_that_works_is_taken(monkeypatch: pytest.MonkeyPatch):
    fails, missing = Isolation(("false",)), Isolation(("there-is-no-such-program",))
    assert asyncio.run(find_isolation((missing, fails, PLAIN))) is PLAIN
    with pytest.raises(BenchError, match="cannot be run here"):
        asyncio.run(find_isolation((fails,)))
    monkeypatch.setattr(isolation_module.sys, "platform", "win32")
    with pytest.raises(BenchError, match="Linux only, this is win32"):
        asyncio.run(find_isolation())
