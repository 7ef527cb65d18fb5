"""River fits vLLM's source: the installed one, and those that a variable names.

``RIVER_VLLM_SOURCES`` lists folders or wheels, as for ``tools/check_vllm.py``, separated by colons.
Of a wheel for GPUs the Python runs too (``gpu_wheel.py``), in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cuda import gpu_wheel
from tests.docs.documents import ROOT
from tools import check_vllm

OTHERS = list(filter(None, os.environ.get("RIVER_VLLM_SOURCES", "").split(":")))
FILES = ("on_gpu_wheel", "test_products", "test_metadata", "test_graphs", "test_waits")


@pytest.mark.parametrize("source", ["installed", *OTHERS])
def test_what_river_uses_of_vllm_is_there(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that the script cannot find there it could not look for in another vLLM either."""
    if source == "installed":
        origin = find_spec("vllm")
        assert origin is not None
        source = str(Path(str(origin.origin)).parents[1])
    status = check_vllm.main([source])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, lines
    assert int(lines[-1].split()[1]) > 50


@pytest.mark.parametrize("wheel", [one for one in OTHERS if one.endswith(".whl")])
def test_river_runs_on_the_python_of_a_wheel_for_gpus(wheel: str, tmp_path: Path) -> None:
    gpu_wheel.unpack(Path(wheel), tmp_path)
    files = [f"tests/cuda/{name}.py" for name in FILES]
    done = subprocess.run(
        [*(sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", gpu_wheel.__name__), *files],
        env={
            **os.environ,
            gpu_wheel.WHEEL: str(Path(wheel).resolve()),
            "PYTHONPATH": f"{tmp_path}:{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        },
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
