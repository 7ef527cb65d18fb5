"""A start reads what passes cost, or times them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm.config import RiverConfig
from river_vllm.costs import Costs
from river_vllm.engine.timing import costs_of_start
from river_vllm.modes.mode import Timed


def start(folder: Path, most: int = 4, **settings: Any) -> tuple[Costs, list[int]]:
    """The costs of an engine's start, and the rows of the backbone's passes that it timed."""
    config = RiverConfig(cache_dir=str(folder), **settings)
    model_config = SimpleNamespace(
        model="tiny",
        architecture="RiverLlamaForCausalLM",
        dtype=torch.bfloat16,
        hf_config=SimpleNamespace(),
        get_hidden_size=lambda: 64,
        get_vocab_size=lambda: 128,
    )
    vllm_config = SimpleNamespace(
        model_config=model_config,
        compilation_config=SimpleNamespace(mode=0),
        parallel_config=SimpleNamespace(nnodes=1),
        additional_config={"river": config.model_dump(exclude_unset=True)},
    )
    info = {"num_layers": 3, "isa": None, "kernels": [], "river_bytes": 1, "backbone_bytes": 2}
    model = SimpleNamespace(river_info=lambda: info)
    runner = SimpleNamespace(vllm_config=vllm_config, get_model=lambda: model)
    ran: list[int] = []
    forward: Any = SimpleNamespace(
        river=SimpleNamespace(num_layers=3),
        idle=lambda rows, layers, head: [rows] * (layers == 3),
        logits=lambda due: ran.extend(due) or torch.zeros(1, 1),
    )
    timed = {
        "draft": Timed(lambda rows: forward.idle(rows, 0, "draft"), 1),
        "river": Timed(lambda rows: forward.idle(rows, 1, "backbone"), most),
    }
    return costs_of_start(runner, forward, timed), ran  # type: ignore[arg-type]


@pytest.mark.usefixtures("vllm_world")
def test_a_start_measures_what_no_start_with_these_settings_has(tmp_path: Path) -> None:
    first, ran = start(tmp_path)
    assert set(ran) == {1, 2, 4}
    second, ran = start(tmp_path, threshold=0.5)
    assert ran == [] and second.crossover() == first.crossover()
    for other in ({"most": 2}, {"activations": "int8"}, {"min_layers": 2}):
        assert start(tmp_path, **other)[1] != []
    # A folder that cannot be written to costs a measurement.
    (tmp_path / "file").touch()
    assert start(tmp_path / "file")[1] != []
