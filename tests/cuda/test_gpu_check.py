"""``make gpu-check`` on this machine's CPU, as small as it goes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.documents import ROOT

pytestmark = pytest.mark.engine


def test_it_compares_both_servers_and_writes_a_page(smollm2: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.md"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "experiments" / "gpu_check.py"), str(smollm2)),
            *("--report", str(page), "--users", "1", "--rounds", "1", "--tokens", "12"),
            "--option=--enforce-eager",
        ],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
    )
    assert page.exists(), done.stdout + done.stderr
    text = page.read_text()
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    verdicts = {check: (result, verdict) for check, result, verdict in cells[1:]}
    assert verdicts["exact = stock"] == ("6 of 6 answers", "ok"), text
    assert verdicts["an exact request after an exit's prefix"][1] == "ok"
    assert verdicts["exits after layer 15 of 30"] == ('{"15": 11}', "ok")
    # A verifying pass has more rows, and a CPU's products may round otherwise then.
    assert verdicts["verified = stock"][1] == "ok", text
    assert "TPOT" in verdicts["exits after 7, 1 users"][0]
    assert done.returncode == 0
    assert "torch " in text
