"""Manifests and values for Kubernetes: what can be told without a cluster."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.files import (
    DASHBOARDS,
    KUBERNETES,
    RULES,
    gibibytes,
    load,
    load_all,
    option,
    server_arguments,
)
from tests.deploy.programs import run

SHARED = load_all(KUBERNETES / "river.yaml")
SERVERS = {build: load(KUBERNETES / f"river-{build}.yaml") for build in ("cpu", "gpu")}
PODS = {build: server["spec"]["template"]["spec"] for build, server in SERVERS.items()}
CONTAINERS = {build: pod["containers"][0] for build, pod in PODS.items()}
OWN = load_all(KUBERNETES / "models-claim.yaml")
MANIFESTS = [*SHARED, *SERVERS.values(), *OWN, load(KUBERNETES / "cache-claim.yaml")]
MONITOR = load(KUBERNETES / "servicemonitor.yaml")
RUNTIME, MODEL = load_all(KUBERNETES / "kserve.yaml")
STACK = load(KUBERNETES / "production-stack.yaml")
STACK_BUILDS = {
    build: load(KUBERNETES / f"production-stack-{build}.yaml") for build in ("cpu", "gpu")
}
KUBERNETES_GRACE_SECONDS = 30
STOP_MARGIN_SECONDS = 10
SHM_GIB_PER_RANK = 2
MAY_BE_WRITTEN = {"/models", "/var/cache/river", "/tmp", "/dev/shm"}


def kind(manifest: dict[str, Any]) -> str:
    return str(manifest["kind"])


@pytest.mark.parametrize("manifest", MANIFESTS, ids=kind)
def test_manifests_follow_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.33", strict=True)


@pytest.mark.parametrize("build", SERVERS)
def test_commented_lines_belong_to_a_valid_manifest(build: str) -> None:
    text = (KUBERNETES / f"river-{build}.yaml").read_text(encoding="utf-8")
    server = yaml.safe_load(re.sub(r"^( *)#-", r"\1-", text, flags=re.MULTILINE))
    kubernetes_validate.validate(server, "1.33", strict=True)
    pod = server["spec"]["template"]["spec"]
    (own,) = (volume for volume in pod["volumes"] if volume["name"] == "own")
    claim = next(m for m in OWN if m["kind"] == "PersistentVolumeClaim")
    assert own["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert {"name": "own", "mountPath": "/own", "readOnly": True} in (
        pod["containers"][0]["volumeMounts"]
    )
    assert {"HF_TOKEN", "HF_HUB_OFFLINE"} <= {e["name"] for e in pod["containers"][0]["env"]}


def test_selectors_meet_the_pods_and_the_monitor_the_services() -> None:
    services = {m["metadata"]["name"]: m for m in SHARED if m["kind"] == "Service"}
    shared = [m for m in SHARED if m["kind"] != "Service"]
    for build, server in SERVERS.items():
        labels = server["spec"]["template"]["metadata"]["labels"]
        for manifest in [*shared, services[server["spec"]["serviceName"]], server]:
            spec = manifest.get("spec", {})
            selector = spec.get("podSelector") or spec.get("selector")
            if selector:
                assert (selector.get("matchLabels") or selector).items() <= labels.items()
        # Both builds fit into one namespace.
        selected = server["spec"]["selector"]["matchLabels"].items()
        for other, pods in SERVERS.items():
            theirs = pods["spec"]["template"]["metadata"]["labels"].items()
            assert (selected <= theirs) == (build == other)
            chosen = services[server["spec"]["serviceName"]]["spec"]["selector"].items()
            assert (chosen <= theirs) == (build == other)
    spec = MONITOR["spec"]
    for service in services.values():
        assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert spec["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


def test_rules_and_dashboards_become_objects() -> None:
    *rules, boards = yaml.safe_load_all(
        run(sys.executable, "-I", KUBERNETES / "make_monitoring.py")
    )
    assert [rule["spec"] for rule in rules] == [load(path) for path in RULES]
    assert boards["data"] == {path.name: path.read_text() for path in DASHBOARDS}


def test_grace_is_above_the_drain_time() -> None:
    arguments = server_arguments()
    kserve = ("kserve", RUNTIME["spec"]["containers"][0], MODEL["spec"]["predictor"])
    engines = ((f"kubernetes {build}", CONTAINERS[build], pod) for build, pod in PODS.items())
    for place, container, pod in (*engines, kserve):
        drain = int(option(arguments[place], "--shutdown-timeout"))
        # In the pause endpoints forget the pod, so that no new request meets the drain.
        pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert pause >= 5
        assert pod["terminationGracePeriodSeconds"] >= pause + drain + STOP_MARGIN_SECONDS
    for build in STACK_BUILDS:
        # The chart has no value for the grace period.
        drain = int(option(arguments[f"production-stack {build}"], "--shutdown-timeout"))
        assert drain + STOP_MARGIN_SECONDS <= KUBERNETES_GRACE_SECONDS


def test_pods_have_no_more_rights_than_they_need() -> None:
    engines = [pod["securityContext"] for pod in PODS.values()]
    for pod in (*engines, STACK["servingEngineSpec"]["securityContext"]):
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == pod["fsGroup"] == 10001
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (
        *(container["securityContext"] for container in CONTAINERS.values()),
        RUNTIME["spec"]["containers"][0]["securityContext"],
        STACK["servingEngineSpec"]["containerSecurityContext"],
    ):
        assert container["allowPrivilegeEscalation"] is False
        assert container["readOnlyRootFilesystem"] is True
        assert container["capabilities"] == {"drop": ["ALL"]}
    assert all(pod["automountServiceAccountToken"] is False for pod in PODS.values())


def test_a_read_only_root_leaves_the_caches_writable() -> None:
    runtime = RUNTIME["spec"]
    pods = [
        *((CONTAINERS[build], pod, SERVERS[build]["spec"]) for build, pod in PODS.items()),
        (runtime["containers"][0], runtime, {}),
    ]
    for container, pod, server in pods:
        mounts = container["volumeMounts"]
        writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
        assert {"/var/cache/river", "/tmp", "/dev/shm"} <= writable <= MAY_BE_WRITTEN
        there = {volume["name"] for volume in pod["volumes"]}
        there |= {claim["metadata"]["name"] for claim in server.get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in mounts} == there


def test_memory_is_enough_for_every_rank_and_the_key_value_cache() -> None:
    for spec in (*PODS.values(), RUNTIME["spec"]):
        shm = next(volume for volume in spec["volumes"] if volume["name"] == "shm")["emptyDir"]
        assert gibibytes(shm["sizeLimit"]) >= SHM_GIB_PER_RANK
    for build in STACK_BUILDS.values():
        model = build["servingEngineSpec"]["modelSpec"][0]
        ranks = model["vllmConfig"]["tensorParallelSize"]
        assert gibibytes(model["shmSize"]) >= SHM_GIB_PER_RANK * ranks
    container = CONTAINERS["cpu"]
    cache = next(e for e in container["env"] if e["name"] == "VLLM_CPU_KVCACHE_SPACE")["value"]
    limit = gibibytes(container["resources"]["limits"]["memory"])
    assert limit >= float(cache) + SHM_GIB_PER_RANK + 3


@pytest.mark.parametrize(
    ("container", "volumes"),
    [
        *((CONTAINERS[build], PODS[build]["volumes"]) for build in PODS),
        (RUNTIME["spec"]["containers"][0], RUNTIME["spec"]["volumes"]),
    ],
    ids=[*PODS, "kserve"],
)
def test_keys_come_from_files_of_the_secret(container: dict[str, Any], volumes: Any) -> None:
    named = {entry["name"]: entry.get("value") for entry in container["env"]}
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "keys")
    (secret,) = (volume["secret"] for volume in volumes if volume["name"] == "keys")
    files = {f"{mount['mountPath']}/{item['path']}" for item in secret["items"]}
    assert {named["RIVER_API_KEY_FILE"], named["RIVER_METRICS_KEY_FILE"]} == files
    credentials = MONITOR["spec"]["endpoints"][0]["authorization"]["credentials"]
    assert credentials["key"] == Path(named["RIVER_METRICS_KEY_FILE"]).name
