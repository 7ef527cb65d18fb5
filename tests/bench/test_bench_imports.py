"""The client runs where neither torch nor vLLM is installed, and plots only when asked to."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
for name in {absent}:
    sys.modules[name] = None  # an import of it raises ImportError
import importlib, pkgutil, server.bench
names = [m.name for m in pkgutil.walk_packages(server.bench.__path__, "server.bench.")]
for name in names:
    importlib.import_module(name)
assert "server.bench.compare.ratios" in names, names
print(*sorted(sys.modules))
"""


def run(*absent: str) -> list[str]:
    script = SCRIPT.format(absent=repr(absent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_no_module_of_the_client_imports_torch_vllm_or_matplotlib():
    loaded = run()
    roots = {name.partition(".")[0] for name in loaded}
    assert not roots & {"torch", "vllm", "transformers", "numpy", "matplotlib"}


def test_every_module_imports_where_they_are_missing():
    run("torch", "vllm", "transformers", "numpy", "matplotlib")
