"""Plain vLLM with River installed: one option serves with a river; without it nothing differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine

VLLM = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
# What pays depends on the machine.
SETTINGS = {"threshold": -1.0, "min_layers": 2, "scope": "token", "max_rows": "all"}
FLAG = ("--additional-config", json.dumps({"river": SETTINGS}))
BODY = {"model": NAME, "prompt": "One, two,", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(autouse=True)
def _no_list_of_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


def plain_vllm(model: Path, log: Path, *options: str, ready: str) -> RiverServer:
    options = (*options, "--enforce-eager")
    return RiverServer(model, log, options, VLLM, positional=False, ready=ready)


def test_one_flag_serves_with_a_river(tiny_qwen2: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with plain_vllm(tiny_qwen2, log, *FLAG, ready="/ready") as server:
        answer = server.post("/v1/completions", BODY).json()
        assert answer["river"]["exit_layers"] == {"2": 7}
        exact = server.post("/v1/completions", BODY | {"river": {"enabled": False}}).json()
        assert exact["river"]["mode"] == "backbone"
        assert server.get("/river").json()["min_layers"] == 2
        assert server.sum_of("river_tokens_total") > 0
    assert "must be explicitly allowlisted" not in log.read_text()


def test_without_it_nothing_of_rivers_is_there(tiny_qwen2: Path, tmp_path: Path) -> None:
    with plain_vllm(tiny_qwen2, tmp_path / "log", ready="/health") as server:
        answer = server.post("/v1/completions", BODY).json()
        assert answer["usage"]["completion_tokens"] == 8
        assert "river" not in answer
        for path in ("/river", "/ready", "/river/console"):
            assert server.get(path).status_code == 404
        assert not [name for name in server.metrics() if name.startswith("river_")]
    written = (tmp_path / "log").read_text()
    assert "Resolved architecture: Qwen2ForCausalLM" in written
    assert "RiverQwen2ForCausalLM" not in written


def test_an_architecture_that_river_does_not_carry_is_refused(
    tiny_qwen2: Path, tmp_path: Path
) -> None:
    """It would be served without a river, and nobody would know."""
    config: dict[str, Any] = json.loads((tiny_qwen2 / "config.json").read_text())
    for file in tiny_qwen2.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "architectures": ["GPT2LMHeadModel"]})
    )
    result = subprocess.run(
        [*VLLM, "--model", str(tmp_path), "--port", "1", *FLAG],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ,
        check=False,
    )
    assert result.returncode != 0
    assert "architecture 'GPT2LMHeadModel' is not supported: it has not been" in result.stderr
    assert "EngineCore" not in result.stdout + result.stderr, "nothing was started"
