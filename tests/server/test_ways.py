"""Other ways in: vLLM's batches, and several processes with keys."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.poll import poll_until
from tests.support.processes import Belongings
from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine

BODY = {"model": NAME, "prompt": "One, two,", "max_tokens": 8, "temperature": 0}


def test_a_batch_of_vllms_own_refuses_what_it_cannot_honour(
    tiny_qwen2: Path, tmp_path: Path
) -> None:
    """``vllm run-batch`` has no HTTP server, and so nothing of River's that takes the field. River
    is asked for in the long form, by the name of its class."""
    chat = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        for name, body in (("plain", chat), ("asks", {**chat, "river": {"threshold": 0.5}}))
    ]
    given, answered = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text("\n".join(map(json.dumps, lines)))
    subprocess.run(
        [
            *(sys.executable, "-m", "vllm.entrypoints.launchers.run_batch"),
            *("-i", str(given), "-o", str(answered), "--model", str(tiny_qwen2)),
            *("--served-model-name", NAME, "--max-model-len", "512", "--enforce-eager"),
            *("--kv-cache-memory-bytes", str(64 << 20)),
            *("--hf-overrides", json.dumps({"architectures": ["RiverQwen2ForCausalLM"]})),
            *("--additional-config", json.dumps({"river": {"max_rows": "all"}})),
        ],
        check=True,
        timeout=300,
    )
    results = {(r := json.loads(line))["custom_id"]: r for line in answered.open()}
    assert results["plain"]["response"]["body"]["usage"]["completion_tokens"] == 4
    refused = results["asks"]
    assert refused["response"]["status_code"] == 400
    assert refused["error"]["error"]["param"] == "river"


@pytest.fixture(scope="module")
def processes(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RiverServer]:
    """A server with two front ends and a file of keys."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "keys").write_text("first-key\nsecond-key\n")
    options = (
        *("--api-server-count", "2", "--river-stall-seconds", "4", "--enforce-eager"),
        *("--api-key-file", str(folder / "keys")),
    )
    with RiverServer(tiny_qwen2, folder / "log", options) as running:
        yield running


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def test_several_processes_agree_on_whether_the_engine_works(processes: RiverServer) -> None:
    """No request is in flight: each process has to find out by itself."""
    with ExitStack() as stack:
        change = {"threshold": 0.5}
        url, headers = processes.url + "/river", key("first-key")
        assert httpx.patch(url, json=change, headers=headers).status_code == 409
        assert processes.process is not None
        running = Belongings.of(processes.process.pid).processes
        engine = [p for p in running if re.search("Engine|Worker", " ".join(p.cmdline()))]
        assert engine
        # Connections that stay open are spread over the processes.
        clients = [stack.enter_context(httpx.Client(timeout=30)) for _ in range(8)]

        def all_say(status: int) -> bool:
            return {c.get(processes.url + "/ready").status_code for c in clients} == {status}

        poll_until(lambda: all_say(200), 20, "every process to be ready")
        for process in engine:
            process.suspend()
        try:
            poll_until(lambda: all_say(503), 60, "every process to say that the engine hangs")
        finally:
            for process in engine:
                process.resume()
        poll_until(lambda: all_say(200), 60, "every process to be ready again")
        assert processes.post("/v1/completions", BODY, headers=headers).status_code == 200


def test_keys_of_a_file_open_both(processes: RiverServer) -> None:
    """Of all routes: tests/unit/http/test_every_route.py."""
    for name, status in (("first-key", 200), ("second-key", 200), ("third", 401)):
        for _ in range(8):  # each has a connection of its own, to either process
            assert processes.get("/river", headers=key(name)).status_code == status
    assert "first-key" not in processes.tail(10_000)
