"""vLLM's options for K/V and weights in memory that River takes, on the CPU: exact answers are
stock vLLM's with the same option, also after an answer of the same prompt that exits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from river_vllm.plugin.refusals import KV_DTYPES
from tests.support import engines
from tests.support.engines import generate, greedy
from tests.support.prompts import PROMPTS

pytestmark = pytest.mark.engine

OFF = {"enabled": False}
LAX = {"threshold": -1.0, "min_layers": 1}
WITHOUT_FP8 = not torch.cpu._is_avx512_supported()
"""vLLM's attention has it on a CPU with AVX-512 only (``v1/attention/backends/cpu_attn.py``)."""
SAME = ("auto", "bfloat16", "fp8_e4m3")
"""Of a bf16 model what every other engine has, by two names, and another name of ``fp8``."""
OPTIONS: dict[str, dict[str, Any]] = {
    dtype: {"kv_cache_dtype": dtype}
    for dtype in KV_DTYPES["cpu"]
    if dtype not in SAME and not (WITHOUT_FP8 and dtype.startswith("fp8"))
}
OPTIONS["float16"]["cpu_offload_gb"] = 0.001  # of weights: no pair of engines of its own


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_exact_answers_are_stocks(tiny_qwen2: Path, options: dict[str, Any]) -> None:
    small = {"kv_cache_memory_bytes": 32 << 20}
    stock = engines.stock_engine(tiny_qwen2, **small, **options)
    river = engines.river_engine(tiny_qwen2, **small, **options)
    expected = generate(stock, PROMPTS, greedy(40))
    left = generate(river, PROMPTS, greedy(40, LAX))
    assert all(max(answer.exit_layers[1:]) == 1 for answer in left)
    exact = generate(river, PROMPTS, greedy(40, OFF))
    assert [answer.tokens for answer in exact] == [answer.tokens for answer in expected]
    assert [answer.tokens for answer in exact] != [answer.tokens for answer in left]


def test_a_prefix_cache_that_is_reset_while_requests_run(
    stock_qwen2: Any, river_qwen2: Any
) -> None:
    """vLLM preempts them, and computes them again: tokens and depths are those of an undisturbed
    run, and exact requests find nothing that was there before."""
    settings = (LAX, OFF, {"threshold": 0.9})
    undisturbed = [generate(river_qwen2, [PROMPTS[0]], greedy(60, one))[0] for one in settings]
    llm = river_qwen2.llm_engine
    for index, one in enumerate(settings):
        llm.add_request(f"reset-{index}", PROMPTS[0], greedy(60, one))
    finished: dict[str, Any] = {}
    for step in range(400):
        if not llm.has_unfinished_requests():
            break
        finished |= {o.request_id: o.outputs[0] for o in llm.step() if o.finished}
        if step in (10, 30):
            assert llm.reset_prefix_cache(reset_running_requests=True)
    found = [engines.generated(finished[f"reset-{index}"]) for index in range(len(settings))]
    assert [answer.tokens for answer in found] == [answer.tokens for answer in undisturbed]
    assert [answer.exit_layers for answer in found] == [
        answer.exit_layers for answer in undisturbed
    ]
    stock = generate(stock_qwen2, [PROMPTS[0]], greedy(60))[0]
    assert found[1].tokens == stock.tokens
