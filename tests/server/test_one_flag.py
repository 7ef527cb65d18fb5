"""Plain vLLM with River installed: one option serves with a river; without it nothing differs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import otlp
from tests.support.otlp import OtlpReceiver
from tests.support.poll import poll_until
from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine

VLLM = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
# What pays depends on the machine.
SETTINGS = {"threshold": -1.0, "min_layers": 2, "scope": "token", "max_rows": "all"}
FLAG = ("--additional-config", json.dumps({"river": SETTINGS}))
BODY = {"model": NAME, "prompt": "One, two,", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
KEY = {"Authorization": "Bearer second-key"}


@pytest.fixture(scope="module", autouse=True)
def _no_list_of_plugins() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_PLUGINS", raising=False)
        yield


def plain_vllm(model: Path, log: Path, *options: str, **more: Any) -> RiverServer:
    return RiverServer(model, log, (*options, "--enforce-eager"), VLLM, positional=False, **more)


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as running:
        yield running


@pytest.fixture(scope="module")
def served(
    tiny_qwen2: Path, receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RiverServer]:
    """With the flag, keys and traces."""
    log = tmp_path_factory.mktemp("one-flag") / "log"
    options = (
        *("--api-key", "first-key", "second-key"),
        *("--otlp-traces-endpoint", receiver.url),
    )
    with plain_vllm(tiny_qwen2, log, *FLAG, *options, environment=otlp.ENVIRONMENT) as running:
        yield running


def test_one_flag_serves_with_a_river(served: RiverServer) -> None:
    answer = served.post("/v1/completions", BODY, headers=KEY).json()
    assert answer["river"]["exit_layers"] == {"2": 7}
    off = BODY | {"river": {"enabled": False}}
    exact = served.post("/v1/completions", off, headers=KEY).json()
    assert exact["river"]["mode"] == "backbone"
    assert served.sum_of("river_tokens_total") > 0
    assert "must be explicitly allowlisted" not in served.log.read_text()


def test_its_routes_want_the_key_that_vllm_asks_for(served: RiverServer) -> None:
    url, change = served.url + "/river", {"threshold": 0.5}
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert served.get("/river/stats", headers=headers).status_code == 401
        assert httpx.patch(url, json=change, headers=headers).status_code == 401
    river = served.get("/river", headers=KEY).json()
    assert (river["threshold"], river["min_layers"]) == (-1.0, 2)
    assert httpx.patch(url, json=change, headers=KEY).json()["threshold"] == 0.5
    assert httpx.patch(url, json={"threshold": -1.0}, headers=KEY).status_code == 200


def test_its_span_is_in_vllms_trace(served: RiverServer, receiver: OtlpReceiver) -> None:
    trace, client = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    traced = {**KEY, "traceparent": f"00-{trace}-{client}-01"}
    assert served.post("/v1/completions", BODY, headers=traced).status_code == 200
    poll_until(lambda: len(receiver.of_trace(trace)) == 2, 20, "both spans of the request")
    spans = receiver.of_trace(trace)
    assert spans["llm_request"].parent == spans["river_request"].id
    assert spans["river_request"].parent == client
    attributes = spans["river_request"].attributes
    assert (attributes["river.mode"], attributes["river.mean_exit_layer"]) == ("exit", 2.0)
    assert attributes["river.exit_layers"] == [2]
    assert attributes["river.exit_layer_tokens"] == [7]


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
