"""Programs under limits, by the best way this machine has and by the plainest.

Limits that a program must reach are low, those that it must not reach are high, so that a busy
machine changes no result.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from river_vllm.errors import RiverError
from server.eval.sandbox import isolation as isolation_module
from server.eval.sandbox import supervisor
from server.eval.sandbox.isolation import ALLOW, UNISOLATED, Isolation, find_isolation
from server.eval.sandbox.program import Limits, SandboxError, passes


@pytest.fixture
def best(monkeypatch: pytest.MonkeyPatch) -> Isolation:
    monkeypatch.setenv(ALLOW, "1")
    return find_isolation()


@pytest.fixture(params=["best", "plain"])
def way(request: pytest.FixtureRequest, best: Isolation) -> Isolation:
    return best if request.param == "best" else UNISOLATED


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs get their folders: this test's, so that their processes can be told."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def run(source: str, way: Isolation = UNISOLATED, **limits: float) -> bool:
    return passes(source, way.words, replace(way.limits, **limits))


def wait_for_none(folder: Path) -> None:
    """No living process of a program in ``folder`` is left."""
    end = time.monotonic() + 20
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
            except OSError:  # it has just ended
                continue
            found += [words] if str(folder) in words else []
        if not found:
            return
        assert time.monotonic() < end, found
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("source", "passed"),
    [
        ("x = 1", True),
        ("import threading as t; t.Thread(target=t.Event().wait).start()", True),
        ("assert 1 == 2, 'no'", False),
        ("def f(:", False),
        ("def f(): return f()\nf()", False),
        ("import sys; sys.exit(0)", False),
        ("import os; os._exit(0)", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", False),
        ("input()", False),
        ("raise ValueError('\\udc80')", False),
        ("def f(x: undefined): pass", False),  # the supervisor's __future__ is not passed on
        ("import os\nif os.fork() == 0: pass\nelse: os.wait(); raise ValueError", False),
    ],
)
def test_how_a_program_ends(source: str, passed: bool):
    assert run(source) is passed


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
    assert run(source, way)


def test_cpu_time(best: Isolation):
    """Also of a program that ignores the signal."""
    started = time.monotonic()
    source = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert not run(source, best, cpu_seconds=1, wall_seconds=300)
    assert not run("while True: print('y' * 10**5)", best, cpu_seconds=1, wall_seconds=300)
    assert time.monotonic() - started < 250


def test_wall_time(way: Isolation):
    started = time.monotonic()
    assert not run("import time; time.sleep(600)", way, wall_seconds=1)
    assert time.monotonic() - started < 300


def test_memory(way: Isolation):
    assert run("x = bytearray(100 << 20)", way, memory_mib=512)
    assert not run("x = bytearray(600 << 20)", way, memory_mib=512)


def test_files(way: Isolation, folder: Path):
    """Within the limit in its own folder; what was written is gone afterwards."""
    source = f"""
import os
assert os.listdir() == ["program.py"]
try:
    with open("large", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)
except OSError:
    pass
assert os.path.getsize("large") == {Limits().file_bytes}
"""
    assert run(source, way)
    assert list(folder.iterdir()) == []


def test_environment(way: Isolation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    source = """
import os, sys
assert set(os.environ) <= {"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE"}, dict(os.environ)
assert os.getcwd() == os.environ["HOME"] and "" not in sys.path and "/nowhere" not in sys.path
"""
    assert run(source, way)


def test_network(way: Isolation, fake):
    port = int(fake(lambda body: "").url.rpartition(":")[2])
    source = f"import socket; socket.create_connection(('127.0.0.1', {port}), 60)"
    assert run(source, way) is (way is UNISOLATED)


FORKS = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        {first}
        time.sleep(600)
"""


def test_processes_end_with_their_program(way: Isolation, folder: Path):
    """Those in sessions of their own too, where something keeps them apart."""
    first = "pass" if way is UNISOLATED else "os.setsid()"
    assert run(FORKS.format(first=first), way)
    wait_for_none(folder)


AS_FIRST = (
    *(sys.executable, "-I", "-c"),
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1); os.execv(sys.argv[1], sys.argv[1:])",
)
"""A supervisor that adopts orphans, as the first process of a namespace does: the machine need not
have any (36: PR_SET_CHILD_SUBREAPER)."""

ORPHAN = """
import os, time
reading, writing = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.read(reading, 1)
    os._exit(0)
os.wait()
os.write(writing, b"x")
time.sleep(0.5)
"""


def test_a_program_goes_on_when_what_it_left_behind_ends():
    assert passes(ORPHAN, AS_FIRST)


def test_processes_are_limited_where_they_are_counted(best: Isolation):
    """Linux does not count those of root."""
    source = "import os\nfor _ in range({}):\n    if os.fork() == 0: os._exit(0)"
    count = best.limits.processes
    assert bool(count) is (os.getuid() != 0 and "--user" in best.words)
    if count:
        assert not run(source.format(2 * count), best)
    else:
        assert "root" in best.note or not best.words


def test_limits_that_it_gets(best: Isolation):
    source = "import resource as r; assert r.getrlimit({}) == {}"
    assert run(source.format("r.RLIMIT_NOFILE", (64, 64)), best)
    if count := best.limits.processes:
        assert run(source.format("r.RLIMIT_NPROC", (count, count)), best)


@pytest.mark.parametrize("words", [("false",), ("/does/not/exist",)])
def test_a_supervisor_that_does_not_report_says_nothing_about_the_program(words: tuple[str, ...]):
    with pytest.raises(SandboxError):
        passes("x = 1", words)


def test_without_isolation_programs_run_only_if_that_is_said(monkeypatch: pytest.MonkeyPatch):
    fails = (Isolation(("there-is-no-such-program",)), Isolation(("false",)))
    monkeypatch.delenv(ALLOW, raising=False)
    with pytest.raises(RiverError, match="--confirm-run-unsafe-code"):
        find_isolation(fails)
    monkeypatch.setenv(ALLOW, "1")
    assert find_isolation(fails) is UNISOLATED
    monkeypatch.setattr(isolation_module.sys, "platform", "win32")
    with pytest.raises(RiverError, match="Linux only, this is win32"):
        find_isolation()


def test_the_supervisor_imports_the_standard_library_alone():
    script = f"import runpy, sys; runpy.run_path({supervisor.__file__!r}); print(*sys.modules)"
    modules = [
        subprocess.run(
            [sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True
        )
        for text in (script, "import sys; print(*sys.modules)")
    ]
    ours, bare = ({name.partition(".")[0] for name in done.stdout.split()} for done in modules)
    assert "resource" in ours
    assert ours - bare <= sys.stdlib_module_names | {"__main__", "__mp_main__"}


def test_the_command_starts_without_torch_and_lm_eval():
    script = """
import sys
for name in ("torch", "vllm", "lm_eval", "scipy", "numpy"):
    sys.modules[name] = None  # an import of it raises ImportError
from server.cli.main import main
sys.exit(main(["eval", "t", "--against-river", "{}"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'river-vllm[eval]'" in done.stderr, done.stderr
    assert done.returncode == 2
