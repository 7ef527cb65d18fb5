"""The images, started as Compose starts them; "make images" builds them and runs this."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.deploy.containers import (
    START_SECONDS,
    Engine,
    ask,
    command,
    found_engine,
    make_secrets,
    model_in,
    only_after_build,
    options,
    unique,
)
from tests.support.poll import poll_until
from tools.images import image

pytestmark = only_after_build

QUESTION = {"messages": [{"role": "user", "content": "Name three rivers."}], "temperature": 0}
LONG = {"max_tokens": 400, "ignore_eos": True, "stream": True}


@dataclass
class Trial:
    """What the containers share, and the name and address of the one that runs."""

    engine: Engine
    folder: Path
    key: str
    model: str
    mounts: list[str]
    volumes: dict[str, str]
    started: list[str] = field(default_factory=list)
    name: str = ""
    url: str = ""
    health_while_loading: int = 0

    def start(self) -> None:
        """A new container; returns when it has answered its first request."""
        begin = time.monotonic()
        self.name = unique("server")
        variables = {"RIVER_MODEL": self.model}
        self.started.append(self.name)
        self.engine(
            *("run", "--detach", "--name", self.name, "--publish", "127.0.0.1::8000"),
            *options("river-cpu", self.folder / "secrets", self.volumes, **variables),
            *(f"--volume={mount}" for mount in self.mounts),
            image("cpu"),
            *command("river-cpu", **variables),
        )
        self.url = self.engine.address(self.name, 8000)
        self.health_while_loading = self.health()
        poll_until(self.ready_or_ended, START_SECONDS, "the server is ready")
        assert self.chat(max_tokens=1)[0] == 200
        print(f"\nfrom run to the first answer: {time.monotonic() - begin:.0f} s")

    def health(self) -> int:
        """The exit status of the image's health check."""
        return self.engine.status("exec", self.name, *self.engine.health_check(self.name))

    def ready_or_ended(self) -> bool:
        running = self.engine.state(self.name)["Running"]
        assert running, self.engine("logs", "--tail", "40", self.name)
        return ask(f"{self.url}/ready")[0] == 200

    def stopped(self) -> int:
        """The exit status of the server, told to stop."""
        self.engine("stop", "-t", "90", self.name)
        return int(self.engine.state(self.name)["ExitCode"])

    def chat(self, **more: Any) -> tuple[int, Any]:
        body = {"model": self.model, **QUESTION, **more}
        return ask(f"{self.url}/v1/chat/completions", self.key, body)

    def stream(self) -> http.client.HTTPResponse:
        """A long answer that has begun."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=120)
        body = json.dumps({"model": self.model, **QUESTION, **LONG})
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data: {")
        return answer


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    folder = tmp_path_factory.mktemp("trial")
    engine = found_engine()
    keys = make_secrets(folder / "secrets")
    model, mounts = model_in(folder)
    volumes = {name: unique(name) for name in ("models", "cache", "results")}
    trial = Trial(engine, folder, keys["client_key"], model, mounts, volumes)
    try:
        trial.start()
        yield trial
    finally:
        for name in trial.started:
            engine.status("rm", "--force", name)
        for volume in volumes.values():
            engine.status("volume", "rm", volume)


def test_health_is_bad_until_the_server_is_ready(trial: Trial) -> None:
    assert (trial.health_while_loading, trial.health()) == (1, 0)


def test_the_container_has_no_more_rights_than_compose_gives_it(trial: Trial) -> None:
    def inside(*words: str) -> str:
        return trial.engine("exec", trial.name, *words)

    assert inside("id", "-u").strip() == "10001"
    status = dict(line.split(":", 1) for line in inside("cat", "/proc/1/status").splitlines())
    assert int(status["CapEff"], 16) == 0
    assert int(status["NoNewPrivs"]) == 1
    assert trial.engine.status("exec", trial.name, "touch", "/opt/river/new") != 0


def test_sigterm_lets_answers_finish_and_the_next_start_finds_the_weights(trial: Trial) -> None:
    answer, ended = trial.stream(), []
    stopping = threading.Thread(target=lambda: ended.append(trial.stopped()))
    stopping.start()
    poll_until(lambda: ask(f"{trial.url}/ready")[0] == 503, 20, "/ready says that it stops")
    assert trial.chat(max_tokens=1)[0] == 503
    events = [line for line in answer.read().decode().splitlines() if line]
    assert events[-1] == "data: [DONE]"
    assert any('"finish_reason":"length"' in event for event in events)
    stopping.join()
    assert ended == [0]
    trial.start()
    _, river = ask(f"{trial.url}/river", trial.key)
    assert river["weights"]["made"] == 0
    assert trial.stopped() == 0
