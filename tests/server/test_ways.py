"""Other ways in: plain vLLM with River as a plugin, keys, and servers that must not start."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support import checkpoints, otlp
from tests.support.otlp import OtlpReceiver
from tests.support.poll import poll_until
from tests.support.processes import Belongings
from tests.support.server import NAME, RiverServer

pytestmark = pytest.mark.engine

VLLM = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
BODY = {"model": NAME, "prompt": "One, two,", "max_tokens": 8, "temperature": 0}
PUBLIC = ("/health", "/ready", "/version")
GUARDED = (
    *("/river", "/river/stats", "/metrics", "/v1/models", "/openapi.json", "/docs", "/load"),
    *("/ping", "/nowhere", "/river/console", "/river/console/js/main.js"),
)


# What pays depends on the machine.
SETTINGS = {"threshold": -1.0, "min_layers": 2, "scope": "token", "max_rows": "all"}
RIVER_OPTIONS = (
    *("--hf-overrides", json.dumps({"architectures": ["RiverQwen2ForCausalLM"]})),
    *("--additional-config", json.dumps({"river": SETTINGS})),
)


def test_plain_vllm_with_the_plugin_and_keys(tiny_qwen2: Path, tmp_path: Path) -> None:
    """vLLM's own server process; River comes in through entry points only, its routes want
    the key that vLLM asks for under /v1, and its span is in vLLM's trace."""
    trace, client = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with ExitStack() as stack:
        receiver = stack.enter_context(OtlpReceiver())
        options = (
            *(*RIVER_OPTIONS, "--enforce-eager", "--api-key", "first-key", "second-key"),
            *("--otlp-traces-endpoint", receiver.url),
        )
        environment = {"VLLM_PLUGINS": "river", **otlp.ENVIRONMENT}
        server = stack.enter_context(
            RiverServer(tiny_qwen2, tmp_path / "log", options, VLLM, environment, positional=False)
        )
        key = {"Authorization": "Bearer second-key"}
        traced = {**key, "traceparent": f"00-{trace}-{client}-01"}
        body = {**BODY, "ignore_eos": True}
        answer = server.post("/v1/completions", body, headers=traced).json()
        assert answer["river"]["exit_layers"] == {"2": 7}
        assert server.get("/river", headers=key).json()["min_layers"] == 2
        url, change = server.url + "/river", {"threshold": 0.5}
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            assert server.get("/river/stats", headers=headers).status_code == 401
            assert httpx.patch(url, json=change, headers=headers).status_code == 401
        assert server.get("/river", headers=key).json()["threshold"] == -1.0
        assert httpx.patch(url, json=change, headers=key).json()["threshold"] == 0.5
        poll_until(lambda: len(receiver.of_trace(trace)) == 2, 20, "both spans of the request")
        spans = receiver.of_trace(trace)
    assert spans["llm_request"].parent == spans["river_request"].id
    assert spans["river_request"].parent == client
    attributes = spans["river_request"].attributes
    assert (attributes["river.mode"], attributes["river.mean_exit_layer"]) == ("exit", 2.0)
    assert attributes["river.exit_layers"] == [2]
    assert attributes["river.exit_layer_tokens"] == [7]


def test_without_a_compiler_every_answer_comes(tiny_qwen2: Path, tmp_path: Path) -> None:
    """vLLM compiles some functions in an eager engine too, those of log-probabilities among them,
    and at the first request that needs one."""
    nothing = {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    with RiverServer(tiny_qwen2, tmp_path / "log", environment=nothing) as server:
        asked = {**BODY, "ignore_eos": True, "logprobs": 2}
        for river in ({}, {"enabled": False}):
            answer = server.post("/v1/completions", {**asked, "river": river}).json()
            assert len(answer["choices"][0]["logprobs"]["top_logprobs"]) == 8
        assert server.log.read_text().count("CXX=/bin/false is no C++ compiler") == 1


def test_a_batch_of_vllms_own_refuses_what_it_cannot_honour(
    tiny_qwen2: Path, tmp_path: Path
) -> None:
    """``vllm run-batch`` has no HTTP server, and so nothing of River's that takes the field."""
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
            *("--kv-cache-memory-bytes", str(64 << 20), *RIVER_OPTIONS),
        ],
        check=True,
        timeout=300,
    )
    results = {(r := json.loads(line))["custom_id"]: r for line in answered.open()}
    assert results["plain"]["response"]["body"]["usage"]["completion_tokens"] == 4
    refused = results["asks"]
    assert refused["response"]["status_code"] == 400
    assert refused["error"]["error"]["param"] == "river"


def test_several_processes_agree_on_whether_the_engine_works(
    tiny_qwen2: Path, tmp_path: Path
) -> None:
    """No request is in flight: each process has to find out by itself."""
    options = ("--api-server-count", "2", "--river-stall-seconds", "4", "--enforce-eager")
    with RiverServer(tiny_qwen2, tmp_path / "log", options) as server, ExitStack() as stack:
        assert httpx.patch(server.url + "/river", json={"threshold": 0.5}).status_code == 409
        assert server.process is not None
        processes = Belongings.of(server.process.pid).processes
        engine = [p for p in processes if re.search("Engine|Worker", " ".join(p.cmdline()))]
        assert engine
        # Connections that stay open are spread over the processes.
        clients = [stack.enter_context(httpx.Client(timeout=30)) for _ in range(8)]

        def all_say(status: int) -> bool:
            return {c.get(server.url + "/ready").status_code for c in clients} == {status}

        poll_until(lambda: all_say(200), 20, "every process to be ready")
        for process in engine:
            process.suspend()
        try:
            poll_until(lambda: all_say(503), 60, "every process to say that the engine hangs")
        finally:
            for process in engine:
                process.resume()
        poll_until(lambda: all_say(200), 60, "every process to be ready again")
        assert server.post("/v1/completions", BODY).status_code == 200


def test_keys_guard_every_route(tiny_qwen2: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\nsecond-key\n")
    options = ("--enforce-eager", "--api-key-file", str(keys))
    with RiverServer(tiny_qwen2, tmp_path / "log", options) as server:
        for path in PUBLIC:
            assert server.get(path).status_code == 200, path
        for path in GUARDED:
            response = server.get(path)
            assert response.status_code == 401, path
            assert response.json()["error"]["code"] == 401
        for key, status in (("first-key", 200), ("second-key", 200), ("third", 401)):
            headers = {"Authorization": f"Bearer {key}"}
            assert server.get("/river", headers=headers).status_code == status
            response = server.post("/v1/completions", BODY, headers=headers)
            assert response.status_code == status
        assert "first-key" not in server.tail(10_000)


def test_a_model_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    _refused(_serve(str(tmp_path)), f"model '{tmp_path}' cannot be read: ")


def test_a_port_in_use_is_one_line(tiny_qwen2: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = _serve(str(tiny_qwen2), "--port", str(port))
    _refused(result, f"127.0.0.1:{port} is in use by another program; choose another with --port")
    assert "Traceback" not in result.stderr


def test_what_a_worker_refuses_is_the_last_line_too(tmp_path: Path) -> None:
    """vLLM's processes write their tracebacks; the line that helps comes after them."""
    checkpoint = checkpoints.tiny_qwen2(tmp_path, intermediate_size=272)
    result = _serve(str(checkpoint), "--enforce-eager")
    _refused(result, "a projection has 272 input features; 4-bit groups need a multiple of 32")


def _refused(result: subprocess.CompletedProcess[str], words: str) -> None:
    assert result.returncode in (1, 2)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("river-vllm")
    assert "error: " in last
    assert words in last


def test_a_broken_plugin_stops_the_start(tiny_qwen2: Path, tmp_path: Path) -> None:
    """vLLM would only log it; without this check the server would run without a river."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['server.http.plugin'] = None\n"
    )
    result = _serve(str(tiny_qwen2), environment={"PYTHONPATH": str(tmp_path)})
    assert result.returncode != 0
    assert "River is not active" in result.stderr


def _serve(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server.cli.main", "serve", "--port", "1", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(environment or {})},
        check=False,
    )
