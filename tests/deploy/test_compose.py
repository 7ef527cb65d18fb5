"""compose.yaml: exposure, privileges, limits, stopping, profiles."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.dockerfile import exec_form, read
from tests.deploy.files import (
    DEPLOY,
    ROOT,
    compose,
    compose_variables,
    gibibytes,
    load,
    option,
    seconds,
)
from tests.deploy.programs import program

FILE = compose()
SERVICES = FILE["services"]
SERVERS = ("river-cpu", "river-gpu")
BUILT = {"river-cpu": "cpu", "river-gpu": "cuda", "loadtest": "client"}
STOP_MARGIN_SECONDS = 15
PROCESSES_GIB = 3

each = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
each_server = pytest.mark.parametrize("service", SERVERS)


def test_profiles() -> None:
    profiles = {name: set(service["profiles"]) for name, service in SERVICES.items()}
    assert profiles == {
        "river-cpu": {"cpu"},
        "river-gpu": {"gpu"},
        "proxy": {"cpu", "gpu"},
        "prometheus": {"cpu", "gpu"},
        "grafana": {"cpu", "gpu"},
        "loadtest": {"loadtest"},
    }


def test_no_engine_shares_its_cores() -> None:
    for name in SERVERS:
        assert "replicas" not in SERVICES[name]["deploy"]
    two = load(DEPLOY / "compose.two.yaml")["services"]
    second = two["river-cpu-2"]
    assert second["extends"] == {"file": "compose.yaml", "service": "river-cpu"}
    cores = [two[name]["cpuset"] for name in ("river-cpu", "river-cpu-2")]
    # Without either there is one line from Compose and no server.
    assert [re.match(r"\$\{(\w+):\?", value)[1] for value in cores] == [  # type: ignore[index]
        "RIVER_CPUSET",
        "RIVER_CPUSET_2",
    ]
    for name in ("river-cpu", "river-cpu-2"):
        assert two[name]["environment"] == {"VLLM_CPU_OMP_THREADS_BIND": "auto"}


@each
def test_nothing_is_published_beyond_the_loopback_address(service: dict[str, Any]) -> None:
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), port


def test_servers_are_reached_through_the_proxy_alone() -> None:
    assert not any("ports" in SERVICES[name] for name in SERVERS)
    assert "serving" not in SERVICES["grafana"]["networks"]


@each
def test_containers_have_no_more_rights_than_they_need(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(service)
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))


@each
def test_containers_are_bounded(service: dict[str, Any]) -> None:
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"]
    assert limits["pids"]
    assert service["logging"]["options"]["max-size"]
    assert service["logging"]["options"]["max-file"]


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_or_built_here(name: str) -> None:
    service = SERVICES[name]
    if name in BUILT:
        assert service["build"] == {"context": "..", "target": BUILT[name]}
        user = read(ROOT / "Dockerfile").stages[BUILT[name]].last("USER")
        assert service["user"] == user
    else:
        assert re.fullmatch(
            r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}", service["image"]
        )


@pytest.mark.parametrize("name", ["proxy", "prometheus", "grafana"])
def test_services_of_other_images_have_a_health_check(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    kind, *command, _ = check["test"]
    assert kind == "CMD"
    assert seconds(check["start_period"]) >= 30
    program("wget", "Debian: apt-get install wget")
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/"
        # A proxy that Docker passes on to every container has no part in it.
        proxied = {"PATH": os.environ["PATH"], "http_proxy": "http://127.0.0.1:9"}
        done = subprocess.run([*command, "--tries=1", url], env=proxied, timeout=30)
        http.shutdown()
    assert done.returncode == 0


def test_health_of_servers_is_the_images_own_check() -> None:
    for name in SERVERS:
        assert "healthcheck" not in SERVICES[name]
        assert read(ROOT / "Dockerfile").stages[BUILT[name]].last("HEALTHCHECK") != "NONE"
    # podman-compose stops at one that depends on a service of another profile.
    assert "depends_on" not in SERVICES["proxy"]


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
    assert "--api-key" not in shlex.split(SERVICES[service]["command"])
    assert environment["RIVER_METRICS_KEY_FILE"] == "/run/secrets/metrics_key"
    assert {"api_keys", "metrics_key"} <= set(SERVICES[service]["secrets"])
    for entry in SERVICES.values():
        for secret in entry.get("secrets", []):
            name = secret if isinstance(secret, str) else secret["source"]
            assert name in FILE["secrets"]


@each_server
def test_the_proxy_is_believed_and_nobody_else_asks_from_outside(service: str) -> None:
    assert SERVICES[service]["environment"]["FORWARDED_ALLOW_IPS"] == "*"
    assert "ports" not in SERVICES[service]


def test_a_gpu_is_reserved_in_the_gpu_profile_alone() -> None:
    (device,) = SERVICES["river-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert "reservations" not in SERVICES["river-cpu"]["deploy"]["resources"]


@each
def test_volumes_and_mounted_files_exist(service: dict[str, Any]) -> None:
    for volume in service.get("volumes", []):
        source, target, *mode = volume.split(":")
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
            assert mode == ["ro"], "configuration is read-only"
        else:
            assert source in FILE["volumes"]
        assert target.startswith("/")


@each_server
def test_the_images_caches_are_volumes(service: str) -> None:
    declared = exec_form(read(ROOT / "Dockerfile").stages[BUILT[service]].last("VOLUME"))
    mounted = {volume.split(":")[1] for volume in SERVICES[service]["volumes"]}
    assert set(declared) == mounted


def test_example_environment_shows_every_variable_with_its_default() -> None:
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    shown = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert shown == compose_variables()


def test_load_test_asks_the_proxy() -> None:
    service = SERVICES["loadtest"]
    port = SERVICES["proxy"]["ports"][0].rsplit(":", 1)[1]
    environment = service["environment"]
    assert environment["GUIDELLM__SPEC__BACKEND__TARGET"] == f"http://proxy:{port}"
    assert set(service["networks"]) <= set(SERVICES["proxy"]["networks"])
    key = Path(environment["RIVER_CLIENT_KEY_FILE"])
    assert key.parent == Path("/run/secrets")
    assert key.name in service["secrets"]
