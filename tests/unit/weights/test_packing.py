"""The count of what was packed, and its progress on a terminal and in a log."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from river_vllm.compat import LinearBase
from river_vllm.config import RiverConfig
from river_vllm.weights.packing import Packing, PackingProgress
from tests.unit.weights.support import weights


class Linear(LinearBase):
    """A projection, as far as packing asks."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


@pytest.mark.usefixtures("vllm_world")
def test_it_counts_what_it_packs(tmp_path: Path) -> None:
    """Of an LM head the bytes alone: whether it is packed depends on more than what a calibration
    is for. vLLM's reload packs each once more."""
    config = RiverConfig(quantizer="rtn", kernel="torch", cache_dir="off")
    model_config: Any = SimpleNamespace(model=str(tmp_path), dtype=torch.bfloat16)
    made = Packing(config, model_config, {})
    packers = [made.expect(layer) for layer in (Linear(), Linear(), nn.Module())]
    shapes = ((64, 128), (32, 96), (64, 64))
    for _ in range(2):
        packed = [packer(weights(*shape)) for packer, shape in zip(packers, shapes, strict=True)]
        info = made.info()
        assert info["river_bytes"] == sum(one.nbytes for one in packed)
        assert (info["quantizer"], info["group_sizes"]) == ("rtn", [32, 128])
        assert (info["kernels"], info["activations"]) == (["torch"], "bf16")
    assert info["weights"]["folder"] is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def pack(progress: PackingProgress, count: int) -> list[bool]:
    for _ in range(count):
        progress.expect()
    last = []
    for _ in range(count):
        progress.start()
        last.append(progress.step())
    return last


def test_a_log_gets_a_line_every_few_seconds() -> None:
    lines: list[str] = []
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    assert pack(PackingProgress(lines.append, stream=io.StringIO(), clock=clock), 12) == [
        *[False] * 11,
        True,
    ]
    assert ["5 of 12" in lines[0], "10 of 12" in lines[1], len(lines)] == [True, True, 2]


def test_a_terminal_gets_a_bar_and_the_log_nothing() -> None:
    lines: list[str] = []
    terminal = Terminal()
    pack(PackingProgress(lines.append, stream=terminal), 8)
    assert "8/8" in terminal.getvalue()
    assert lines == []


def test_other_ranks_are_silent() -> None:
    lines: list[str] = []
    terminal = Terminal()
    progress = PackingProgress(lines.append, False, terminal, clock=iter(range(0, 999, 9)).__next__)
    assert pack(progress, 3)[-1]
    assert terminal.getvalue() == ""
    assert lines == []
