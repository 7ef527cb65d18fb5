"""tools/check_vllm.py lists what River imports from vLLM and another vLLM lacks."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tools import check_vllm

RIVER = """
import vllm.gone_module
from vllm import LLM
from vllm.config import VllmConfig, lost
def late():
    from vllm.platforms import current_platform, layers
"""
VLLM = {
    "vllm/__init__.py": "if True:\n    from vllm.entry import LLM",
    "vllm/config/__init__.py": "from .inner import *",
    "vllm/config/inner.py": "class VllmConfig:\n    lost = 1",
    "vllm/elsewhere.py": "def lost(): ...",
    "vllm/platforms/__init__.py": "try:\n    current_platform = 1\nfinally: ...",
    "vllm/platforms/layers.py": "",
}


@pytest.fixture(params=["wheel", "folder"])
def vllm(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "vllm-9.9.9.whl"
    if request.param == "wheel":
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in VLLM.items():
                archive.writestr(name, text)
        return path
    for name, text in VLLM.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def test_what_is_gone_is_listed_with_its_new_home(vllm: Path, tmp_path, monkeypatch, capsys):
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "user.py").write_text(RIVER)
    monkeypatch.setattr(check_vllm, "ROOT", tmp_path)
    assert check_vllm.main([str(vllm)]) == 1
    module, name, counted = capsys.readouterr().out.splitlines()
    assert "vllm.gone_module (server/user.py:2)" in module
    assert "vllm.config lost, now in vllm/elsewhere.py (server/user.py:4)" in name
    assert "4 of 6" in counted
