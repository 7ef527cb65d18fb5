"""compose.yaml: exposure, privileges, limits, stopping, profiles."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from typing import Any

import pytest

from tests.deploy.files import (
    DEPLOY,
    ROOT,
    compose,
    compose_variables,
    gibibytes,
    option,
    seconds,
    server_arguments,
)
from tests.deploy.programs import program
from tests.deploy.test_prometheus import ALERTS
from tests.support.parser import serve_parser

FILE = compose()
SERVICES = FILE["services"]
SERVERS = ("river-cpu", "river-gpu")
BUILT = {"river-cpu": "cpu", "river-gpu": "cuda", "loadtest": "client"}
STOP_MARGIN_SECONDS = 15
PROCESSES_GIB = 3

each = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
each_server = pytest.mark.parametrize("service", SERVERS)


def test_nothing_is_published_beyond_the_loopback_address_and_servers_not_at_all() -> None:
    for name, service in SERVICES.items():
        ports = service.get("ports", [])
        assert all(port.startswith("127.0.0.1:") for port in ports), ports
        assert not (ports and name in SERVERS)


@each
def test_containers_have_no_more_rights_than_they_need_and_are_bounded(service: dict[str, Any]):
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(service)
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"] and limits["pids"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_or_built_here(name: str) -> None:
    service = SERVICES[name]
    if name in BUILT:
        assert service["build"] == {"context": "..", "target": BUILT[name]}
        assert f"\nUSER {service['user']}\n" in (ROOT / "Dockerfile").read_text()
    else:
        assert re.fullmatch(
            r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}", service["image"]
        )


@pytest.mark.parametrize("name", ["proxy", "prometheus", "grafana"])
def test_services_of_other_images_have_a_health_check(name: str) -> None:
    kind, *command, _ = SERVICES[name]["healthcheck"]["test"]
    assert kind == "CMD"
    program("wget", "Debian: apt-get install wget")
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/"
        # A proxy that Docker passes on to every container has no part in it.
        proxied = {"PATH": os.environ["PATH"], "http_proxy": "http://127.0.0.1:9"}
        done = subprocess.run([*command, "--tries=1", url], env=proxied, timeout=30)
        http.shutdown()
    assert done.returncode == 0


@each_server
def test_docker_waits_longer_than_the_server_drains(service: str) -> None:
    drain = int(option(shlex.split(SERVICES[service]["command"]), "--shutdown-timeout"))
    assert drain > 0, "0 aborts what is being answered"
    for name in (service, "proxy"):
        assert seconds(SERVICES[name]["stop_grace_period"]) >= drain + STOP_MARGIN_SECONDS


def test_memory_limit_is_above_the_key_value_cache() -> None:
    service = SERVICES["river-cpu"]
    cache = float(service["environment"]["VLLM_CPU_KVCACHE_SPACE"])
    limit = gibibytes(service["deploy"]["resources"]["limits"]["memory"])
    assert limit >= cache + gibibytes(service["shm_size"]) + PROCESSES_GIB


@each_server
def test_keys_come_from_files(service: str) -> None:
    environment = SERVICES[service]["environment"]
    assert environment["RIVER_API_KEY_FILE"] == "/run/secrets/api_keys"
    assert environment["RIVER_METRICS_KEY_FILE"] == "/run/secrets/metrics_key"
    assert "--api-key" not in shlex.split(SERVICES[service]["command"])
    assert {"api_keys", "metrics_key"} <= set(SERVICES[service]["secrets"]) <= set(FILE["secrets"])


def test_mounted_files_exist_and_cannot_be_written_to() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source, _, mode = (*volume.split(":"), "")[:3]
            assert (
                (DEPLOY / source).exists() if source.startswith(".") else source in FILE["volumes"]
            )
            assert mode == "ro" or not source.startswith("."), "configuration is read-only"


def test_example_environment_shows_every_variable_with_its_default() -> None:
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    shown = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert shown == compose_variables()


ARGUMENTS = server_arguments()


@pytest.mark.parametrize("place", ARGUMENTS)
def test_server_takes_its_options(place: str) -> None:
    """Those of Kubernetes too."""
    words = [word.replace("{{.Name}}", "name") for word in ARGUMENTS[place]]
    args = serve_parser().parse_args(words)
    assert args.model_tag == words[0]
    assert args.shutdown_timeout > 0
    assert args.sse_keep_alive_interval > 0
    assert args.max_num_queued_reqs > 0
    # The chart adds host and port by itself.
    assert args.host == "0.0.0.0" or place.startswith("production-stack")


def test_more_options_from_the_environment_file_reach_the_containers() -> None:
    """Their start scripts split them (test_image_scripts.py)."""
    more = "--river-threshold 0.9 --max-model-len 4096"
    services = compose(RIVER_ARGS=more, LOADTEST_ARGS=more)["services"]
    for name, variable in (*((s, "RIVER_ARGS") for s in SERVERS), ("loadtest", "LOADTEST_ARGS")):
        assert services[name]["environment"][variable] == more


def test_the_documentation_names_what_exists() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    for path in set(re.findall(r"\b(?:deploy|tests)/[\w./-]*\w", text)):
        written = path == "deploy/.env" or path.startswith("deploy/secrets")
        assert written or (ROOT / path).exists(), path
    assert {rule["alert"] for rule in ALERTS} >= set(re.findall(r"`(River[A-Z]\w+)`", text))
    named = set(re.findall(r"\b(?:RIVER|LOADTEST)_[A-Z_]+\b", text))
    elsewhere = {"RIVER_PROMETHEUS_URL", "RIVER_DASHBOARDS", "RIVER_HEALTH_URL", "RIVER_URL"}
    assert named - elsewhere <= set(compose_variables())
    assert set(re.findall(r"--profile (\w+)", text)) == {
        p for s in SERVICES.values() for p in s["profiles"]
    }
