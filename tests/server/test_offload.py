"""A server whose late backbone layers are out of memory: what it says, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine

BODY: dict[str, Any] = {
    "model": NAME,
    "prompt": "One, two,",
    "max_tokens": 8,
    "temperature": 0,
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def offloaded(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RiverServer]:
    log = tmp_path_factory.mktemp("offloaded") / "log.txt"
    options = ("--river-resident-layers", "3", "--river-scope", "token", "--river-max-rows", "all")
    with RiverServer(tiny_qwen2, log, options) as running:
        yield running


def test_it_says_what_is_resident(offloaded: RiverServer) -> None:
    river = offloaded.get("/river").json()
    assert (river["num_layers"], river["resident_layers"], river["deep"]) == (6, 3, "exit")
    # Per layer: q, k, v, o and the MLP's three, of 128 features and 256 in between.
    layer = 128 * (128 + 64 + 64 + 128) + 3 * 128 * 256
    assert river["backbone_bytes"] == 3 * layer * 2
    assert offloaded.sum_of("river_resident_layers") == 3


@pytest.mark.parametrize(("threshold", "trace"), [(0.999, [3] * 8), (-1.0, [3] + [1] * 7)])
def test_nothing_goes_deeper_than_the_last_resident_layer(
    offloaded: RiverServer, threshold: float, trace: list[int]
) -> None:
    river = {"threshold": threshold, "trace": True}
    answer = offloaded.post("/v1/completions", {**BODY, "river": river}).json()
    assert answer["choices"][0]["river_trace"] == trace


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"enabled": False}, "river.enabled"),
        ({"threshold": 1.0}, "river.threshold"),
        ({"min_layers": 4}, "river.min_layers"),
    ],
)
def test_what_it_cannot_do_is_refused(
    offloaded: RiverServer, field: dict[str, Any], param: str
) -> None:
    response = offloaded.post("/v1/completions", {**BODY, "river": field})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert "only the first 3 of 6 hold backbone weights" in error["message"]


def test_the_default_cannot_be_made_exact_live(offloaded: RiverServer) -> None:
    response = httpx.patch(offloaded.url + "/river", json={"threshold": 1.0})
    assert response.status_code == 400
    assert offloaded.get("/river").json()["threshold"] == 0.9
