"""compose.yaml as it runs: server, proxy, Prometheus with the shipped rules, load test.

"make images" runs this after it has built the images. Not tried: the GPU profile; Grafana, where
stand-ins take the place of the images from a registry: its dashboards' queries are.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.deploy.containers import (
    START_SECONDS,
    Engine,
    ask,
    found_engine,
    make_secrets,
    model_in,
    only_after_build,
    output,
    unique,
)
from tests.deploy.files import COMPOSE, DASHBOARDS, RULES, concrete, load
from tests.deploy.programs import program
from tests.deploy.proxy import free_port
from tests.support.poll import poll_until

pytestmark = only_after_build

SERVICES = ("river-cpu", "proxy", "prometheus", "grafana")
PORTS = {"river": "RIVER_PORT", "prometheus": "PROMETHEUS_PORT", "grafana": "GRAFANA_PORT"}
LOAD = "one-user"
EXITS = "--backend kind=openai_http,extras.body.river.threshold=0.9"
"""The load test asks for exits: by default no token ends on the river."""


class Stack:
    """The services of compose.yaml under a project name of their own.

    Args:
        folder: for keys, the model and what is laid over compose.yaml.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.project = unique("compose")
        self.model, mounts = model_in(folder)
        self.keys = make_secrets(folder / "secrets")
        self.ports = {name: free_port() for name in PORTS}
        stand_ins = {
            service: f"localhost/stand-in/{name}"
            for service, name in {"proxy": "nginx", "prometheus": "prometheus"}.items()
            if engine.status("image", "inspect", f"localhost/stand-in/{name}") == 0
        }
        self.services = [name for name in SERVICES if not (stand_ins and name == "grafana")]
        over: dict[str, Any] = {service: {"image": name} for service, name in stand_ins.items()}
        if mounts:
            over |= {name: {"volumes": mounts} for name in ("river-cpu", "loadtest")}
        (folder / "over.yaml").write_text(yaml.safe_dump({"services": over}))
        if engine.program == "docker":
            command = ["docker", "compose"]
        else:
            command = [program("podman-compose", "pip install podman-compose")]
        self._command = [
            *(*command, "--project-name", self.project),
            *("--file", str(COMPOSE), "--file", str(folder / "over.yaml")),
            *("--profile", "cpu", "--profile", "loadtest"),
        ]
        self._environment = {
            **os.environ,
            "RIVER_MODEL": self.model,
            "HF_HUB_OFFLINE": str(int(bool(mounts))),
            # test_images.py starts the compiled form, which takes minutes more.
            "RIVER_ARGS": "--enforce-eager --max-model-len 2048",
            "RIVER_SECRETS": str(folder / "secrets"),
            "LOADTEST_SCENARIO": LOAD,
            "LOADTEST_ARGS": EXITS,
            **{variable: str(self.ports[name]) for name, variable in PORTS.items()},
        }

    def compose(self, *words: str) -> str:
        return output(*self._command, *words, seconds=START_SECONDS, environment=self._environment)

    def containers(self, service: str = "") -> list[str]:
        labels = {"project": self.project} | ({"service": service} if service else {})
        chosen = (f"--filter=label=com.docker.compose.{k}={v}" for k, v in labels.items())
        return self.engine("ps", "--all", "--quiet", *chosen).split()

    def ask(self, path: str, body: Any = None, key: str = "client_key") -> tuple[int, Any]:
        """An answer of the proxy."""
        return ask(f"http://127.0.0.1:{self.ports['river']}{path}", self.keys.get(key), body)

    def prometheus(self, path: str) -> Any:
        status, answer = ask(f"http://127.0.0.1:{self.ports['prometheus']}/api/v1/{path}")
        assert status == 200, answer
        return answer["data"]

    def value(self, query: str) -> float | None:
        """What Prometheus has for a query; None where that is not one sample."""
        found = self.prometheus(f"query?query={quote(query)}")["result"]
        return float(found[0]["value"][1]) if len(found) == 1 else None

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        alerts = self.prometheus("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def check_health(stack: Stack, ended: threading.Event) -> None:
    """Podman leaves health checks to systemd's timers; where that does not run, they run here."""
    while not ended.wait(2):
        for container in stack.containers():
            stack.engine.status("healthcheck", "run", container)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(found_engine(), tmp_path_factory.mktemp("compose"))
    ended = threading.Event()
    checks = threading.Thread(target=check_health, args=(stack, ended))
    if stack.engine.program == "podman" and not Path("/run/systemd/system").exists():
        checks.start()
    try:
        stack.compose("up", "--detach", *stack.services)
        poll_until(lambda: stack.ask("/ready")[0] == 200, START_SECONDS, "ready through the proxy")
        yield stack
    finally:
        ended.set()
        if checks.ident:
            checks.join()
        stack.compose("down", "--volumes")


def test_the_proxy_leads_to_the_server(stack: Stack) -> None:
    question = {"model": stack.model, "prompt": "Rivers are", "max_tokens": 8}
    assert stack.ask("/v1/completions", question, key="none")[0] == 401
    status, answer = stack.ask("/v1/completions", {**question, "river": {"threshold": 0.9}})
    assert status == 200
    assert sum(answer["river"]["exit_layers"].values()) == 7
    assert stack.ask("/v1/models")[1]["data"][0]["max_model_len"] == 2048
    assert stack.ask("/river/console")[0] == 200
    assert stack.ask("/metrics", key="metrics_key")[0] == 404
    assert stack.ask("/river", key="metrics_key")[0] == 200
    assert stack.ask("/v1/completions", question, key="metrics_key")[0] == 401


def test_prometheus_scrapes_with_its_key_and_has_the_rules(stack: Stack) -> None:
    def all_up() -> bool:
        targets = stack.prometheus("targets")["activeTargets"]
        found = {(target["labels"]["job"], target["health"]) for target in targets}
        return found == {("river", "up"), ("prometheus", "up")}

    poll_until(all_up, 60, "both targets are up")
    written = [rule for path in RULES for group in load(path)["groups"] for rule in group["rules"]]

    def evaluated() -> bool:
        groups = stack.prometheus("rules")["groups"]
        health = [rule["health"] for group in groups for rule in group["rules"]]
        return health == ["ok"] * len(written)

    poll_until(evaluated, 60, "every rule has been evaluated")
    poll_until(lambda: not stack.firing(), 60, "no alert fires")


def test_the_load_runs_and_prometheus_and_every_panel_sees_it(stack: Stack) -> None:
    stack.compose("run", "--rm", "--no-deps", "-T", "loadtest")
    shown = stack.compose(
        *("run", "--rm", "--no-deps", "-T", "--entrypoint", "cat"),
        *("loadtest", f"/results/{LOAD}.json"),
    )
    report = json.loads(shown[shown.index("{") :])
    assert report
    counted = poll_until(
        lambda: stack.value("sum(river_tokens_total)"), 30, "Prometheus has River's tokens"
    )
    assert counted > 300
    recorded = "instance:river_tokens_on_river:ratio_rate5m"
    poll_until(lambda: stack.value(recorded), 60, "the recorded ratio")
    panels = [panel for path in DASHBOARDS for panel in json.loads(path.read_text())["panels"]]
    empty = {
        panel["title"]
        for panel in panels
        for target in panel.get("targets", [])
        if not stack.prometheus(f"query?query={quote(concrete(target['expr']))}")["result"]
    }
    assert empty <= {"Firing alerts", "Preemptions and refusals per second"}


def test_the_threshold_is_changed_in_the_container(stack: Stack) -> None:
    (container,) = stack.containers("river-cpu")
    stack.engine("exec", container, "python", "/opt/river/set_threshold.py", "0.85")
    assert stack.ask("/river")[1]["threshold"] == 0.85
    poll_until(lambda: stack.value("max(river_threshold)") == 0.85, 30, "Prometheus sees it")


def test_a_server_that_hangs_is_reported_and_the_alert_ends_with_it(stack: Stack) -> None:
    """The shipped rule, after its five minutes; promtool tries every other alert."""
    (container,) = stack.containers("river-cpu")
    stack.engine("pause", container)
    try:
        fired = poll_until(stack.firing, 420, "an alert fires", every=2)
    finally:
        stack.engine("unpause", container)
    assert fired == {"RiverReplicaDown"}
    poll_until(lambda: not stack.firing(), 90, "the alert ends", every=2)
    assert stack.ask("/ready")[0] == 200


def test_everything_stops_cleanly(stack: Stack) -> None:
    server, proxy = (stack.containers(name)[0] for name in ("river-cpu", "proxy"))
    stack.compose("stop")
    for container in (server, proxy):
        assert stack.engine.state(container)["ExitCode"] == 0
