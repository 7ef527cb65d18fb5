"""The documentation site builds without a warning; a broken link is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.documents import ROOT


def test_it_builds(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    words = ("-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-b", "html")
    command = [sys.executable, *words, str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for page, word in (
        ("cli", "--river-threshold"),
        ("http", "mean_exit_layer"),
        ("python", "river_vllm.config.RiverConfig.threshold"),
    ):
        assert word in (tmp_path / "reference" / f"{page}.html").read_text(encoding="utf-8")
