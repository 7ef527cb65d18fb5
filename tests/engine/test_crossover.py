"""Up to how many rows exits pay: measured at load by whole steps, and in force from then on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from river_vllm import RiverConfig
from tests.support.engines import generate, greedy, river_engine
from tests.support.prompts import PROMPTS

pytestmark = pytest.mark.engine


def test_whole_steps_decide(tiny_qwen2: Path, stock_qwen2: Any) -> None:
    engine = river_engine(tiny_qwen2, RiverConfig(max_rows="auto"))
    (info,) = engine.collective_rpc("river_info")
    # A step cannot have more rows than requests.
    assert list(info["crossover"]["speedup_by_rows"]) == ["1", "2", "4", "8", "16"]
    assert set(info["costs"]) == {"backbone", "river"}
    assert list(info["costs"]["river"]["ms"]) == ["1", "2", "4", "8", "16"]
    core = engine.llm_engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    assert runner.river_steps.info()["crossover"] == info["crossover"]
    off = greedy(24, {"enabled": False})
    found, stock = (generate(e, PROMPTS[:4], off) for e in (engine, stock_qwen2))
    assert [answer.tokens for answer in found] == [answer.tokens for answer in stock]
