"""What every fault test ends with: a correct answer from the same server, and nothing in flight."""

from __future__ import annotations

from tests.support.poll import poll_until
from tests.support.server import NAME, RiverServer

GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
PROMPT = {"model": NAME, "prompt": "The capital of France is", "max_tokens": 6, "temperature": 0}
EXACT = {**PROMPT, "river": {"enabled": False}}


def assert_well(server: RiverServer, expected: str = " Paris") -> None:
    """The server answers as ever and all gauges go back to zero.

    Args:
        expected: what its exact answer holds; a random checkpoint's is in ``exact_text``.
    """
    assert server.get("/health").status_code == 200
    assert server.get("/ready").status_code == 200
    assert expected in exact_text(server)
    poll_until(lambda: idle(server), 20, f"gauges at zero, {gauges(server)}")


def exact_text(server: RiverServer) -> str:
    response = server.post("/v1/completions", EXACT)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def gauges(server: RiverServer) -> dict[str, float]:
    return {name: server.sum_of(name) for name in GAUGES}


def idle(server: RiverServer) -> bool:
    return not any(gauges(server).values())
