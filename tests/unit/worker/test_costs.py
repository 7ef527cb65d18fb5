"""Costs at a start: measured once, read by the next start of the same engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from river_vllm.config import RiverConfig
from river_vllm.worker.costs import costs_of_start

pytestmark = pytest.mark.usefixtures("vllm_world")

INFO = {"num_layers": 3, "isa": None, "kernels": ["torch"], "river_bytes": 1, "backbone_bytes": 2}


def runner(folder: Path, **settings: Any) -> Any:
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
        additional_config={"river": config.model_dump(exclude_unset=True)},
    )
    return SimpleNamespace(
        vllm_config=vllm_config,
        max_num_reqs=4,
        get_model=lambda: SimpleNamespace(river_info=lambda: INFO),
    )


def start(folder: Path, most: int = 4, **settings: Any) -> tuple[Any, list[int]]:
    ran: list[int] = []
    costs = costs_of_start(
        runner(folder, **settings),
        {"backbone": ran.append, "draft": lambda rows: None},
        {"backbone": most, "draft": 1},
    )
    return costs, ran


def test_the_second_start_measures_nothing(tmp_path: Path) -> None:
    first, ran = start(tmp_path)
    assert set(ran) == {1, 2, 4}
    second, ran = start(tmp_path)
    assert ran == []
    assert second.seconds("backbone", 2) == first.seconds("backbone", 2)
    assert second.describe(0.0)["draft"]["from"] == "an earlier start"


def test_what_changes_the_costs_is_measured_anew(tmp_path: Path) -> None:
    start(tmp_path)
    assert start(tmp_path, threshold=0.5)[1] == []
    for other in ({"most": 2}, {"activations": "int8"}, {"min_layers": 2}):
        assert start(tmp_path, **other)[1] != []


def test_a_folder_that_refuses_costs_a_measurement(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        assert start(tmp_path / "file")[1] != []
