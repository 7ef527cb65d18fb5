"""The programs that the image adds: health check, live threshold, the "vllm" of charts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY

HEALTHCHECK = DEPLOY / "image" / "healthcheck.py"
SET_THRESHOLD = DEPLOY / "image" / "set_threshold.py"
DROP_IN = DEPLOY / "image" / "drop-in" / "vllm"
SERVE = DEPLOY / "image" / "serve.py"
LOAD_TEST = DEPLOY / "loadtest" / "start.py"


class Ready(BaseHTTPRequestHandler):
    """Answers its path's last part as the status."""

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer(int(self.path.rsplit("/", 1)[-1]), b'{"stalled": 130}')

    def do_PATCH(self) -> None:
        """As River's own route: a key, and a threshold in its range."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        allowed = self.headers["Authorization"] == "Bearer first"
        status = 401 if not allowed else 200 if -1 <= body["threshold"] <= 1 else 400
        self.answer(status, json.dumps(body).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Ready) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def script(path: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(path), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        *(("{}/200", 0, "stalled"), ("{}/503", 1, "HTTP 503"), ("{}/503", 1, "130")),
        *((url, 1, url) for url in ("http://127.0.0.1:9/x", "no address", "ftp://127.0.0.1:9/x")),
    ],
)
def test_health_is_the_servers_and_says_why(server: str, path: str, status: int, said: str) -> None:
    # A proxy for the model's download has no part in it.
    proxy = {"HTTP_PROXY": "http://127.0.0.1:9"}
    done = script(HEALTHCHECK, RIVER_HEALTH_URL=path.format(server), **proxy)
    assert (done.returncode, done.stderr) == (status, "")
    assert said in done.stdout


@pytest.mark.parametrize(
    ("keys", "value", "status", "shown"),
    [
        ("first\nsecond\n", "0.85", 0, '{"threshold": 0.85}'),
        ("first\nsecond\n", "1.5", 1, "HTTP 400"),
        ("wrong\n", "0.85", 1, "HTTP 401"),
    ],
)
def test_live_threshold(server: str, tmp_path, keys: str, value: str, status: int, shown: str):
    file = tmp_path / "keys"
    file.write_text(keys)
    names = {"RIVER_URL": f"{server}/river", "RIVER_API_KEY_FILE": str(file)}
    done = script(SET_THRESHOLD, value, **names)
    said = done.stdout + done.stderr
    assert done.returncode == status
    assert shown in said
    assert not any(key in said for key in keys.split())


def started(folder: Path, program: str, *command: str, **environment: str) -> list[str]:
    """The arguments of ``program``, which a script becomes: its process gets the signals."""
    path = folder / program
    path.write_text('#!/bin/sh\necho "$$"\nfor word; do echo "<$word>"; done\nexit 7\n')
    path.chmod(0o755)
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment, "PATH": f"{folder}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 7
    first, *words = output.splitlines()
    assert first == str(process.pid), "a shell stands in front of it"
    return words


def test_vllm_of_charts_is_rivers_command(tmp_path: Path) -> None:
    words = started(tmp_path, "river-vllm", str(DROP_IN), "serve", "a model", "--x={}")
    assert words == ["<serve>", "<a model>", "<--x={}>"]


@pytest.mark.parametrize(
    ("script", "program", "first", "variable"),
    [
        (SERVE, "river-vllm", "<serve>", "RIVER_ARGS"),
        (LOAD_TEST, "guidellm", "<run>", "LOADTEST_ARGS"),
    ],
)
def test_images_add_options_from_their_environment(
    tmp_path: Path, script: Path, program: str, first: str, variable: str
) -> None:
    command = (sys.executable, str(script), "a model")
    for more, added in (("", []), ("""--x '{"a": 2}'""", ["<--x>", '<{"a": 2}>'])):
        words = started(tmp_path, program, *command, **{variable: more})
        assert words == [first, "<a model>", *added]
