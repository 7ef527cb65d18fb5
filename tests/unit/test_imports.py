"""What an import costs, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "vllm", "transformers")

CHECK = f"""
import sys
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit("loaded: " + ", ".join(loaded) if loaded else 0)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code + CHECK], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "module",
    [
        "river_vllm",
        "river_vllm.request",
        "river_vllm.plugin.registration",
        "server.cli.main",
        "server.cli.serve",
        "server.bench.command",
    ],
)
def test_the_light_side_imports_neither_torch_nor_vllm(module: str) -> None:
    done = run(f"import {module}\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("argv", [["--help"], ["bench", "--help"]], ids=" ".join)
def test_help_imports_neither_torch_nor_vllm(argv: list[str]) -> None:
    code = f"""
from server.cli.main import main
try:
    main({argv!r})
except SystemExit as stop:
    assert stop.code == 0, stop.code
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "usage: river-vllm" in done.stdout
