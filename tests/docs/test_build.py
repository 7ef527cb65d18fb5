"""The documentation site builds without a warning; a broken link is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.documents import ROOT


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    words = ("-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-b", "html")
    return subprocess.run(
        [sys.executable, *words, str(source), str(target)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def test_it_builds(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    done = build(ROOT / "docs", tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "cli.html").read_text(encoding="utf-8")
    for word in ("--river-threshold", "--fail-below", "--target-agreement", "river_gsm8k"):
        assert word in page
    http = (tmp_path / "reference" / "http.html").read_text(encoding="utf-8")
    for word in ("/river/stats", "mean_exit_layer", "min_layers", "acceptance"):
        assert word in http
    python = (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    assert "river_vllm.config.RiverConfig.threshold" in python


def test_a_broken_link_fails_it(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text('extensions = ["myst_parser"]\n')
    (source / "index.md").write_text("# A page\n\n[elsewhere](nowhere.md)\n")
    done = build(source, tmp_path / "out")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
