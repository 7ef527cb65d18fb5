"""The count of what was packed, and the line that says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from river_vllm.compat import LinearBase
from river_vllm.config import RiverConfig
from river_vllm.weights import packing
from river_vllm.weights.packing import Packing
from tests.unit.weights.test_rtn import weights


class Linear(LinearBase):
    """A projection, as far as packing asks."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged."""
    found: list[str] = []
    log = SimpleNamespace(info=lambda text, *values: found.append(text % values))
    monkeypatch.setattr(packing, "logger", log)
    return found


@pytest.mark.usefixtures("vllm_world")
def test_it_counts_what_it_packs_and_says_so_at_the_end(tmp_path: Path, lines: list[str]) -> None:
    config = RiverConfig(quantizer="rtn", kernel="torch", cache_dir="off")
    model_config: Any = SimpleNamespace(model=str(tmp_path), dtype=torch.bfloat16)
    made = Packing(config, model_config, {})
    packers = [made.expect(Linear()) for _ in range(3)]
    shapes = ((64, 128), (32, 96), (64, 128))
    packed = []
    for packer, (out_features, in_features) in zip(packers, shapes, strict=True):
        assert lines == []
        packed.append(packer(weights(out_features, in_features)))
        assert made.info()["river_bytes"] == sum(one.nbytes for one in packed)
    (line,) = lines
    assert line.startswith("River: 4-bit weights (rtn, groups of 32/128, torch kernel), 0.0 MiB")
    info = made.info()
    assert (info["quantizer"], info["group_sizes"], info["kernels"]) == (
        "rtn",
        [32, 128],
        ["torch"],
    )
    assert (info["activations"], info["zero_points"]) == ("bf16", "float")
    assert (info["weights"]["made"], info["weights"]["folder"]) == (3, None)
    assert info["weights"]["seconds"] >= 0
    # vLLM's reload loads and packs each once more.
    for packer, shape in zip(packers, shapes, strict=True):
        packer(weights(*shape))
    assert made.info()["river_bytes"] == info["river_bytes"]
    assert len(lines) == 2


@pytest.mark.usefixtures("vllm_world")
def test_group_sizes_are_the_projections(tmp_path: Path) -> None:
    """Whether an LM head is packed too depends on more than what a calibration is for."""
    config = RiverConfig(quantizer="rtn", kernel="torch", cache_dir="off")
    model_config: Any = SimpleNamespace(model=str(tmp_path), dtype=torch.bfloat16)
    made = Packing(config, model_config, {})
    for layer, width in ((nn.Module(), 64), (Linear(), 96)):
        made.expect(layer)(weights(64, width))
    assert made.info()["group_sizes"] == [32]
