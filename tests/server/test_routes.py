"""River's own routes, and metrics that count every decode token once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from river_vllm.kernels.native.library import backend
from tests.support.forms import form
from tests.support.server import NAME, RiverServer, total

pytestmark = pytest.mark.engine

Dial = Callable[[float], None]
BLOCK = 32
PROMPT = {"model": NAME, "prompt": "Count: one, two, three,", "temperature": 0}


def test_describe(server: RiverServer) -> None:
    river = server.get("/river").json()
    assert river["active"] is True
    assert river["num_layers"] == 30
    assert river["quantizer"] == "hqq"
    native = backend()
    assert river["kernels"] == ["native" if native else "torch"]
    assert river["isa"] == (native and native.name)
    assert river["group_sizes"] == [64, 128], "SmolLM2's 576 features take groups of 64"
    assert river["river_bytes"] > 50 << 20


@pytest.fixture
def dial(server: RiverServer) -> Iterator[Dial]:
    """Changes the default threshold; the old one comes back."""
    before = server.get("/river").json()["threshold"]

    def turn(threshold: float) -> None:
        response = httpx.patch(server.url + "/river", json={"threshold": threshold})
        assert response.status_code == 200
        assert response.json()["threshold"] == threshold

    yield turn
    turn(before)


def test_patch_changes_the_default_for_what_comes_after(server: RiverServer, dial: Dial) -> None:
    dial(-1.0)
    assert server.sum_of("river_threshold") == -1.0
    answer = server.post("/v1/completions", {**PROMPT, "max_tokens": 8}).json()
    assert answer["river"]["exit_layers"] == {"1": answer["usage"]["completion_tokens"] - 1}
    own = {**PROMPT, "max_tokens": 8, "river": {"threshold": 1.0}}
    answer = server.post("/v1/completions", own).json()
    assert set(answer["river"]["exit_layers"]) == {"30"}


def _ask(server: RiverServer, prompt: Any, tokens: int) -> tuple[list[int], int, int]:
    """Prompt and answer as tokens, the prompt's length, and its tokens out of the cache."""
    body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    answer = server.post(
        "/v1/completions", body | {"ignore_eos": True, "return_token_ids": True}
    ).json()
    (choice,) = answer["choices"]
    usage = answer["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    tokens_of_all = [*choice["prompt_token_ids"], *choice["token_ids"]]
    return tokens_of_all, usage["prompt_tokens"], cached


def whole_blocks(tokens: int) -> int:
    return (tokens - 1) // BLOCK * BLOCK


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    form(
        short=[(0.9, 1.0, False), (1.0, -1.0, True)],
        long=[(-1.0, 1.0, False), (0.9, 0.97, False), (1.0, -1.0, True), (1.0, 1.0, True)],
    ),
)
def test_the_second_turn_after_a_change(
    server: RiverServer, dial: Dial, first: float, second: float, shared: bool
) -> None:
    """An answer from before the change is read by those after it only where it is exact."""
    dial(first)
    fresh = f"{uuid.uuid4()} Here is a long story about the sea and the people who live by it."
    talk, prompt_tokens, _ = _ask(server, fresh, 90)
    dial(second)
    _, _, cached = _ask(server, [*talk, 5, 6, 7, 8], 1)
    # The last generated token was never an input: its K/V is not there.
    expected = whole_blocks(len(talk)) if shared else whole_blocks(prompt_tokens + 1)
    assert cached == expected
    assert whole_blocks(len(talk)) >= whole_blocks(prompt_tokens + 1) + 2 * BLOCK


def test_openapi_knows_the_field(server: RiverServer) -> None:
    schema = server.get("/openapi.json").json()
    for name in ("ChatCompletionRequest", "CompletionRequest", "ResponsesRequest"):
        assert (
            "threshold"
            in schema["components"]["schemas"][name]["properties"]["river"]["properties"]
        )
    assert {"/river", "/river/stats", "/ready"} <= set(schema["paths"])


def test_counts_add_up(server: RiverServer) -> None:
    """Mixed requests: sums of the reports are what the metrics and the totals gained."""
    before = _totals(server)
    bodies = [
        {**PROMPT, "max_tokens": 12, "river": {"threshold": 0.9}},
        {**PROMPT, "max_tokens": 12, "river": {"enabled": False}},
        {**PROMPT, "max_tokens": 30, "stop": [","], "river": {"threshold": 0.9}},
        {**PROMPT, "max_tokens": 1},
        {**PROMPT, "max_tokens": 7, "n": 3, "temperature": 1.0, "seed": 4},
    ]
    reports = [server.post("/v1/completions", body).json()["river"] for body in bodies]
    after = _totals(server)
    gained = {key: after[key] - before[key] for key in after}
    decode = sum(report["tokens"] for report in reports)
    layers = sum(
        int(layer) * count for report in reports for layer, count in report["exit_layers"].items()
    )
    assert gained["tokens"] == decode == gained["depth_count"]
    assert gained["backbone_layers"] == layers == gained["depth_sum"]
    assert gained["skipped_layers"] == 30 * decode - layers
    on_backbone = sum(report["exit_layers"].get("30", 0) for report in reports)
    assert gained["on_backbone"] == on_backbone
    # vLLM counts the token that comes out of the prefill too: one for each choice.
    assert gained["vllm"] == decode + 7


REFUSED = {"stream": True, "logit_bias": {"100000000": 1}}


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", PROMPT), ("/v1/responses", {"model": NAME, "input": "Hi"})],
)
def test_a_refused_stream_is_counted_as_the_client_gets_it(
    server: RiverServer, path: str, body: dict[str, Any]
) -> None:
    def counted() -> list[float]:
        metrics = server.metrics()
        groups = ("2xx", "4xx")
        return [total(metrics, "http_requests_total", handler=path, status=g) for g in groups]

    succeeded, refused = counted()
    response = server.post(path, {**body, **REFUSED})
    assert response.status_code == response.json()["error"]["code"] == 400
    assert counted() == [succeeded, refused + 1]


def _totals(server: RiverServer) -> dict[str, float]:
    stats = server.get("/river/stats").json()
    metrics = server.metrics()
    generated = total(metrics, "vllm:generation_tokens_total")
    river, backbone = (
        total(metrics, "river_tokens_total", path=path) for path in ("river", "backbone")
    )
    assert stats["tokens"] == river + backbone
    assert stats["backbone_layers"] == total(metrics, "river_backbone_layers_total")
    assert sum(stats["exit_layers"].values()) == stats["tokens"]
    return {
        "tokens": stats["tokens"],
        "on_backbone": backbone,
        "backbone_layers": stats["backbone_layers"],
        "skipped_layers": total(metrics, "river_skipped_layers_total"),
        "depth_count": total(metrics, "river_exit_layer_count"),
        "depth_sum": total(metrics, "river_exit_layer_sum"),
        "vllm": generated,
    }
