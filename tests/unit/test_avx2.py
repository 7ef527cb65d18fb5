"""The imitation of an AVX2 machine, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "support" / "avx2"
ASK = """
import json, torch
print(json.dumps({
    "questions": {n: bool(getattr(torch.cpu, n)()) for n in dir(torch.cpu) if n.startswith("_is_")},
    "capability": torch.backends.cpu.get_cpu_capability(),
}))
"""


@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="imitates an x86-64 CPU's older kin")
def test_such_a_machine_has_avx2_and_nothing_beyond_it() -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(FOLDER),
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["capability"] == "AVX2"
    assert [name for name, there in found["questions"].items() if there] == ["_is_avx2_supported"]
