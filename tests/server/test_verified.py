"""A server that verifies drafts, compiled: reports, metrics, and what it has no use for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from river_vllm.host import Stage
from server.cli.narration import STAGES
from tests.support.server import NAME, RiverServer, total

pytestmark = pytest.mark.engine

CHAT = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Count from one to thirty."}],
    "max_tokens": 48,
    "temperature": 0,
}
REPORT = {
    *("enabled", "mode", "num_layers", "tokens", "steps", "tokens_per_step"),
    *("drafted", "accepted", "acceptance"),
}


@pytest.fixture(scope="module")
def drafting(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RiverServer]:
    log = tmp_path_factory.mktemp("drafting") / "log.txt"
    options = ("--river-verify", "3", "--river-draft", "fixed", "--river-max-rows", "all")
    with RiverServer(tiny_qwen2, log, options) as running:
        yield running


def chat(server: RiverServer, **changes: Any) -> dict[str, Any]:
    response = server.post("/v1/chat/completions", {**CHAT, **changes})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_it_is_compiled(drafting: RiverServer) -> None:
    """The only one of the short form."""
    assert STAGES[Stage.GRAPH] in drafting.log.read_text(errors="replace")


def test_the_report_says_what_became_of_the_drafts(drafting: RiverServer) -> None:
    answer = chat(drafting, n=2, temperature=0.8, ignore_eos=True)
    river = answer["river"]
    assert set(river) == REPORT
    assert (river["mode"], river["enabled"], river["num_layers"]) == ("verified", True, 6)
    assert river["tokens"] == answer["usage"]["completion_tokens"] - 2 == 94
    assert 0 < river["accepted"] <= river["drafted"]
    assert river["steps"] == river["tokens"] - river["accepted"]
    assert river["acceptance"] == round(river["accepted"] / river["drafted"], 4)


def test_a_stream_is_the_same_answer(drafting: RiverServer) -> None:
    whole = chat(drafting)
    lines = drafting.post("/v1/chat/completions", {**CHAT, "stream": True}).text.splitlines()
    stream = [json.loads(line.removeprefix("data: ")) for line in lines if "{" in line]
    text = "".join(c["delta"].get("content") or "" for e in stream for c in e["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert stream[-1]["river"] == whole["river"]


def test_a_trace_says_which_tokens_were_drafted(drafting: RiverServer) -> None:
    answer = chat(drafting, river={"trace": True})
    trace = answer["choices"][0]["river_trace"]
    assert len(trace) == answer["usage"]["completion_tokens"]
    assert trace[0] == 0, "the first token comes out of the prompt"
    assert sum(trace) == answer["river"]["accepted"]


def test_every_draft_is_counted_once(drafting: RiverServer) -> None:
    before = drafting.metrics()
    answer = chat(drafting, ignore_eos=True)["river"]
    after = drafting.metrics()

    def more(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert more("river_drafted_tokens_total") == answer["drafted"]
    assert more("river_accepted_tokens_total") == answer["accepted"]
    assert more("river_tokens_total", path="backbone") == answer["tokens"]
    totals = drafting.get("/river/stats").json()
    assert totals["drafted"] == total(after, "river_drafted_tokens_total")


def test_what_is_in_force(drafting: RiverServer) -> None:
    river = drafting.get("/river").json()
    assert (river["mode"], river["threshold"]) == ("verified", 0.9)
    assert river["verify"] == {"max_tokens": 3, "adaptive": False}


def test_a_request_may_exit_instead(drafting: RiverServer) -> None:
    river = chat(drafting, river={"threshold": -1.0, "min_layers": 2}, ignore_eos=True)["river"]
    assert (river["mode"], river["exit_layers"]) == ("exit", {"2": river["tokens"]})
    try:
        dial = httpx.patch(drafting.url + "/river", json={"threshold": -1.0})
        assert dial.status_code == 200
        assert chat(drafting, river={"mode": "exit"})["river"]["threshold"] == -1.0
        assert chat(drafting)["river"]["mode"] == "verified"
    finally:
        httpx.patch(drafting.url + "/river", json={"threshold": 0.9}).raise_for_status()
