"""The client runs where neither torch nor vLLM is installed."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
for name in ("torch", "vllm", "transformers", "numpy", "scipy"):
    sys.modules[name] = None  # an import of it raises ImportError
import importlib, pkgutil, server.evaluate
names = [m.name for m in pkgutil.walk_packages(server.evaluate.__path__, "server.evaluate.")]
for name in names:
    importlib.import_module(name)
assert "server.evaluate.tasks.humaneval" in names, names
"""


def test_every_module_imports_where_they_are_missing():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_supervisor_imports_the_standard_library_alone():
    from server.evaluate.sandbox import supervisor

    script = f"import runpy, sys; runpy.run_path({supervisor.__file__!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    assert "resource" in roots, done.stderr
    assert roots - sys.stdlib_module_names <= {"__main__", "__mp_main__"} | _sites()


def _sites() -> set[str]:
    """What this installation imports into every process."""
    words = [sys.executable, "-I", "-c", "import sys; print(*sys.modules)"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}
