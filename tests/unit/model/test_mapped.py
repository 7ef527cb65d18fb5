"""Pages of a mapped checkpoint are given back, and nothing else is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from river_vllm.model import mapped
from river_vllm.model.mapped import release, releasing

MIB = 1 << 20

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({name: torch.full((4 * MIB,), ord(name), dtype=torch.uint8) for name in "abcd"}, path)
    return path


def resident(path: Path) -> int:
    """Bytes of ``path`` in this process's memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first:
            ours = line.endswith(path.name)
        elif ours and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


def test_read_pages_go_and_come_back(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        tensors = [opened.get_tensor(name) for name in "abcd"]
        sums = [int(t.sum()) for t in tensors]
        assert resident(file) >= 15 * MIB
        release([(t.data_ptr(), t.nbytes) for t in tensors])
        assert resident(file) < MIB
        assert [int(t.sum()) for t in tensors] == sums


def test_a_window_stays_while_loading(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "WINDOW", 4 * MIB)
    most, seen = 0, []
    with safe_open(file, framework="pt") as opened:
        pairs = ((name, opened.get_tensor(name)) for name in "abcd")
        for name, tensor in releasing(pairs):
            seen.append((name, int(tensor[0]), int(tensor.sum())))
            most = max(most, resident(file))
        assert resident(file) < MIB
    assert seen == [(name, ord(name), ord(name) * 4 * MIB) for name in "abcd"]
    assert most < 14 * MIB
