"""Manifests and values for Kubernetes: what can be told without a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

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
from tests.deploy.metrics import known_series, names_in

SHARED = load_all(KUBERNETES / "river.yaml")
SERVERS = {build: load(KUBERNETES / f"river-{build}.yaml") for build in ("cpu", "gpu")}
PODS = {build: server["spec"]["template"]["spec"] for build, server in SERVERS.items()}
CONTAINERS = {build: pod["containers"][0] for build, pod in PODS.items()}
MANIFESTS = [*SHARED, *SERVERS.values(), load(KUBERNETES / "cache-claim.yaml")]
MONITOR = load(KUBERNETES / "servicemonitor.yaml")
RUNTIME, MODEL = load_all(KUBERNETES / "kserve.yaml")
STACK = load(KUBERNETES / "production-stack.yaml")
STACK_BUILDS = {
    build: load(KUBERNETES / f"production-stack-{build}.yaml") for build in ("cpu", "gpu")
}
KUBERNETES_GRACE_SECONDS = 30
STOP_MARGIN_SECONDS = 10
SHM_GIB_PER_RANK = 2

each_build = pytest.mark.parametrize("build", SERVERS)


def kind(manifest: dict[str, Any]) -> str:
    return str(manifest["kind"])


@pytest.mark.parametrize("manifest", MANIFESTS, ids=kind)
def test_manifests_follow_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    validator = pytest.importorskip(
        "kubernetes_validate", reason="needs the package kubernetes-validate"
    )
    validator.validate(manifest, "1.33", strict=True)


def test_selectors_meet_the_pods() -> None:
    for server in SERVERS.values():
        labels = server["spec"]["template"]["metadata"]["labels"]
        for manifest in [*SHARED, server]:
            spec = manifest.get("spec", {})
            selector = spec.get("podSelector") or spec.get("selector")
            if selector:
                assert (selector.get("matchLabels") or selector).items() <= labels.items()


def test_both_builds_fit_into_one_namespace() -> None:
    names = [server["metadata"]["name"] for server in SERVERS.values()]
    assert len(set(names)) == len(names)
    for build, server in SERVERS.items():
        selected = server["spec"]["selector"]["matchLabels"].items()
        for other, pods in SERVERS.items():
            labels = pods["spec"]["template"]["metadata"]["labels"]
            assert (selected <= labels.items()) == (build == other)


def test_the_monitor_meets_the_service() -> None:
    service = next(m for m in SHARED if m["kind"] == "Service")
    spec = MONITOR["spec"]
    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert spec["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


@each_build
def test_engines_share_neither_cores_nor_claims(build: str) -> None:
    spec = SERVERS[build]["spec"]
    assert spec["replicas"] == 1
    assert {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]} == {
        "models",
        "cache",
    }
    if build == "cpu":
        (term,) = PODS[build]["affinity"]["podAntiAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        assert term["labelSelector"] == spec["selector"]
        (model,) = STACK_BUILDS["cpu"]["servingEngineSpec"]["modelSpec"]
        assert model["replicaCount"] == 1


def test_an_update_needs_no_second_set_of_cores_or_gpus() -> None:
    """A StatefulSet stops a pod first; the two Deployments have to be told."""
    one_by_one = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    specs = {build: values["servingEngineSpec"] for build, values in STACK_BUILDS.items()}
    assert specs["cpu"]["strategy"] == {"type": "Recreate"}
    assert specs["gpu"]["strategy"] == one_by_one
    assert MODEL["spec"]["predictor"]["deploymentStrategy"] == one_by_one


def test_what_scales_is_what_runs_and_by_a_series_that_exists() -> None:
    spec = load(KUBERNETES / "keda.yaml")["spec"]
    server = SERVERS["cpu"]
    assert spec["scaleTargetRef"] == {
        "apiVersion": server["apiVersion"],
        "kind": server["kind"],
        "name": server["metadata"]["name"],
    }
    (trigger,) = spec["triggers"]
    assert names_in(trigger["metadata"]["query"]) <= known_series()
    assert 'app="river"' in trigger["metadata"]["query"]


def test_rules_and_dashboards_become_objects() -> None:
    done = subprocess.run(
        [sys.executable, "-I", str(KUBERNETES / "make_monitoring.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    *rules, boards = yaml.safe_load_all(done.stdout)
    assert [rule["spec"] for rule in rules] == [load(path) for path in RULES]
    assert {rule["kind"] for rule in rules} == {"PrometheusRule"}
    assert boards["data"] == {path.name: path.read_text() for path in DASHBOARDS}
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_grace_is_above_the_drain_time() -> None:
    arguments = server_arguments()
    for place, container, pod in (
        *((f"kubernetes {build}", CONTAINERS[build], pod) for build, pod in PODS.items()),
        ("kserve", RUNTIME["spec"]["containers"][0], MODEL["spec"]["predictor"]),
    ):
        drain = int(option(arguments[place], "--shutdown-timeout"))
        # In the pause endpoints forget the pod, so that no new request meets the drain.
        pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert pause >= 5
        assert pod["terminationGracePeriodSeconds"] >= pause + drain + STOP_MARGIN_SECONDS
    for build in STACK_BUILDS:
        # The chart has no value for the grace period.
        drain = int(option(arguments[f"production-stack {build}"], "--shutdown-timeout"))
        assert drain + STOP_MARGIN_SECONDS <= KUBERNETES_GRACE_SECONDS


@pytest.mark.parametrize(
    "probes",
    [*CONTAINERS.values(), RUNTIME["spec"]["containers"][0], STACK["servingEngineSpec"]],
    ids=[*CONTAINERS, "kserve", "production-stack"],
)
def test_probes_ask_for_progress(probes: dict[str, Any]) -> None:
    startup, readiness, liveness = (
        probes[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")
    )
    assert {p["httpGet"]["path"] for p in (startup, readiness, liveness)} == {"/ready"}
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= 30
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 300


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


def writable(mounts: list[dict[str, Any]]) -> set[str]:
    return {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}


def test_a_read_only_root_leaves_the_caches_writable() -> None:
    for build, container in CONTAINERS.items():
        mounts = container["volumeMounts"]
        assert {"/models", "/var/cache/river", "/tmp", "/dev/shm"} == writable(mounts)
        claims = SERVERS[build]["spec"]["volumeClaimTemplates"]
        there = {volume["name"] for volume in PODS[build]["volumes"]}
        there |= {claim["metadata"]["name"] for claim in claims}
        assert {mount["name"] for mount in mounts} == there
    runtime = RUNTIME["spec"]
    assert {"/var/cache/river", "/tmp", "/dev/shm"} == writable(
        runtime["containers"][0]["volumeMounts"]
    )
    volumes = {volume["name"] for volume in runtime["volumes"]}
    assert {mount["name"] for mount in runtime["containers"][0]["volumeMounts"]} == volumes
    for build in STACK_BUILDS.values():
        model = build["servingEngineSpec"]["modelSpec"][0]
        assert {"/var/cache/river", "/tmp"} == writable(model["extraVolumeMounts"])


def test_compiled_code_and_4_bit_weights_outlive_a_pod() -> None:
    claim = load(KUBERNETES / "cache-claim.yaml")["metadata"]["name"]
    models = [build["servingEngineSpec"]["modelSpec"][0] for build in STACK_BUILDS.values()]
    for volumes in (RUNTIME["spec"]["volumes"], *(model["extraVolumes"] for model in models)):
        cache = next(volume for volume in volumes if volume["name"] == "cache")
        assert cache == {"name": "cache", "persistentVolumeClaim": {"claimName": claim}}


def test_shared_memory_is_enough_for_every_rank() -> None:
    arguments = server_arguments()
    for place, spec in (
        *((f"kubernetes {build}", pod) for build, pod in PODS.items()),
        ("kserve", RUNTIME["spec"]),
    ):
        assert not any("tensor-parallel" in argument for argument in arguments[place])
        shm = next(volume for volume in spec["volumes"] if volume["name"] == "shm")["emptyDir"]
        assert gibibytes(shm["sizeLimit"]) >= SHM_GIB_PER_RANK
    for build in STACK_BUILDS.values():
        model = build["servingEngineSpec"]["modelSpec"][0]
        ranks = model["vllmConfig"]["tensorParallelSize"]
        assert gibibytes(model["shmSize"]) >= SHM_GIB_PER_RANK * ranks


def test_memory_is_above_the_key_value_cache() -> None:
    container = CONTAINERS["cpu"]
    cache = next(e for e in container["env"] if e["name"] == "VLLM_CPU_KVCACHE_SPACE")["value"]
    limit = gibibytes(container["resources"]["limits"]["memory"])
    assert limit >= float(cache) + SHM_GIB_PER_RANK + 3


@pytest.mark.parametrize("build", STACK_BUILDS)
def test_the_charts_command_is_rivers(build: str) -> None:
    model = STACK_BUILDS[build]["servingEngineSpec"]["modelSpec"][0]
    path = next(entry["value"] for entry in model["env"] if entry["name"] == "PATH")
    assert path.split(":")[:2] == ["/opt/river/drop-in", "/opt/river/venv/bin"]
    # Its router reads /metrics without a key.
    assert "--river-open-metrics" in model["vllmConfig"]["extraArgs"]
    assert STACK["servingEngineSpec"]["vllmApiKey"]["secretName"] == "river-keys"


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


def test_images_have_a_version() -> None:
    images = [container["image"] for container in CONTAINERS.values()]
    images.append(RUNTIME["spec"]["containers"][0]["image"])
    specs = [STACK["routerSpec"]]
    specs += [b["servingEngineSpec"]["modelSpec"][0] for b in STACK_BUILDS.values()]
    images += [f"{spec['repository']}:{spec['tag']}" for spec in specs]
    for image in images:
        assert any(letter.isdigit() for letter in image.rpartition(":")[2]), image
