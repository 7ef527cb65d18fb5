"""What stock vLLM does where River cannot do better, or has to: shown on a stock server.

Long form only: it takes a server of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

from tests.support.forms import form
from tests.support.poison import corpus
from tests.support.server import NAME, RiverServer

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(form(True, False), reason="long form only (make reliability)"),
]

VLLM = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")


def test_heavy_grammars_get_stock_vllms_status(
    smollm2: Path, tmp_path: Path, server: RiverServer
) -> None:
    heavy = [poison for poison in corpus() if poison.name.startswith("heavy")]
    assert heavy
    stock = RiverServer(smollm2, tmp_path / "log", (), VLLM, positional=False, ready="/health")
    with stock:
        for poison in heavy:
            statuses = [
                httpx.post(
                    either.url + poison.path,
                    content=poison.body,
                    headers=poison.headers,
                    timeout=60,
                ).status_code
                for either in (stock, server)
            ]
            assert statuses[0] == statuses[1], poison
            assert stock.get("/health").status_code == 200


def test_a_seed_and_a_prompt_in_chunks_end_its_engine(tiny_qwen2: Path, tmp_path: Path) -> None:
    """Once this fails, ``sample_tokens`` of ``river_vllm/engine/cpu.py`` can go."""
    options = ("--enforce-eager", "--max-num-batched-tokens", "32", "--block-size", "32")
    server = RiverServer(
        tiny_qwen2, tmp_path / "log", options, VLLM, positional=False, ready="/health"
    )
    body = {"model": NAME, "prompt": [7] * 200, "max_tokens": 4, "seed": 1, "temperature": 1.0}
    with server:
        assert server.post("/v1/completions", body | {"prompt": [7] * 20}).status_code == 200
        assert server.post("/v1/completions", body).status_code == 500
        server.process.wait(60)
    assert "CPU Generator does not use offset" in server.log.read_text(errors="replace")
