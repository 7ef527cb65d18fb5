"""LoRA adapters over HTTP: by name, at the start and at run time, with River's field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.adapters import RANK, make_adapter
from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def adapters(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(tiny_qwen2, folder / f"a{seed}", seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def adapting(
    tiny_qwen2: Path, adapters: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RiverServer]:
    log = tmp_path_factory.mktemp("adapting") / "log.txt"
    options = (
        *("--enable-lora", "--max-loras", "2", "--max-lora-rank", str(RANK)),
        *("--lora-modules", f"first={adapters[0]}"),
        *("--river-verify", "3", "--river-draft", "fixed", "--river-max-rows", "all"),
    )
    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with RiverServer(tiny_qwen2, log, options, environment=environment) as running:
        yield running


def answer(server: RiverServer, model: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    greedily = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
    body = {"model": model, **greedily, "ignore_eos": True, **changes}
    response = server.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    found = response.json()
    return found["choices"][0]["text"], found["river"]


def test_an_adapter_is_a_model_of_its_own(adapting: RiverServer) -> None:
    text, report = answer(adapting, "first")
    assert report["mode"] == "verified"
    assert 0 < report["accepted"] <= report["drafted"]
    assert text != answer(adapting, NAME)[0]
    exits = {"threshold": -1.0, "min_layers": 2}
    assert answer(adapting, "first", river=exits)[1]["exit_layers"] == {"2": 23}
    assert answer(adapting, "first", river={"enabled": False})[1]["enabled"] is False


def test_an_adapter_comes_and_goes_at_run_time(adapting: RiverServer, adapters: list[Path]) -> None:
    assert adapting.get("/river").json()["adapters"] == ["first"]
    load = {"lora_name": "second", "lora_path": str(adapters[1])}
    assert adapting.post("/v1/load_lora_adapter", load).status_code == 200
    assert adapting.get("/river").json()["adapters"] == ["first", "second"]
    texts = {answer(adapting, model)[0] for model in (NAME, "first", "second")}
    assert len(texts) == 3
    unload = {"lora_name": "second"}
    assert adapting.post("/v1/unload_lora_adapter", unload).status_code == 200
    assert adapting.get("/river").json()["adapters"] == ["first"]
    gone = adapting.post("/v1/completions", {"model": "second", "prompt": "x"})
    assert gone.status_code == 404
