"""The count of what was packed, and its progress on a terminal and in a log."""

from __future__ import annotations

import io
import itertools
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


@pytest.mark.parametrize("first_rank", [True, False])
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_log_gets_a_line_every_few_seconds_and_a_terminal_a_bar(
    stream: type[io.StringIO], first_rank: bool
) -> None:
    """Of the first rank alone."""
    lines: list[str] = []
    shown, clock = stream(), itertools.count()
    progress = PackingProgress(lines.append, first_rank, shown, clock=clock.__next__)
    for _ in range(12):
        progress.expect()
    last = []
    for _ in range(12):
        progress.start()
        last.append(progress.step())
    assert last == [*[False] * 11, True]
    counts = ["5 of 12", "10 of 12"] if first_rank and stream is io.StringIO else []
    assert len(lines) == len(counts)
    assert all(count in line for count, line in zip(counts, lines, strict=True))
    assert ("12/12" in shown.getvalue()) is (first_rank and stream is Terminal)
