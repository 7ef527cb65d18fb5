"""Manifests and values for Kubernetes: what can be told without a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.files import KUBERNETES, gibibytes, load, load_all, option, server_arguments

MANIFESTS = load_all(KUBERNETES / "river.yaml")
DEPLOYMENT = next(m for m in MANIFESTS if m["kind"] == "Deployment")
POD = DEPLOYMENT["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
RUNTIME, MODEL = load_all(KUBERNETES / "kserve.yaml")
STACK = load(KUBERNETES / "production-stack.yaml")
STACK_BUILDS = {
    build: load(KUBERNETES / f"production-stack-{build}.yaml") for build in ("cpu", "gpu")
}
KUBERNETES_GRACE_SECONDS = 30
STOP_MARGIN_SECONDS = 10


def kind(manifest: dict[str, Any]) -> str:
    return str(manifest["kind"])


@pytest.mark.parametrize("manifest", MANIFESTS, ids=kind)
def test_manifests_follow_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    validator = pytest.importorskip(
        "kubernetes_validate", reason="needs the package kubernetes-validate"
    )
    validator.validate(manifest, "1.33", strict=True)


def test_selectors_meet_the_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    for manifest in MANIFESTS:
        spec = manifest.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if selector:
            assert (selector.get("matchLabels") or selector).items() <= labels.items()
    monitor = load(KUBERNETES / "podmonitor.yaml")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["podMetricsEndpoints"][0]["port"] == CONTAINER["ports"][0]["name"]


def test_grace_is_above_the_drain_time() -> None:
    arguments = server_arguments()
    drain = int(option(arguments["kubernetes"], "--shutdown-timeout"))
    pause = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    assert POD["terminationGracePeriodSeconds"] >= pause + drain + STOP_MARGIN_SECONDS
    drain = int(option(arguments["kserve"], "--shutdown-timeout"))
    grace = MODEL["spec"]["predictor"]["terminationGracePeriodSeconds"]
    assert grace >= drain + STOP_MARGIN_SECONDS
    for build in STACK_BUILDS:
        # The chart has no value for the grace period.
        drain = int(option(arguments[f"production-stack {build}"], "--shutdown-timeout"))
        assert drain + STOP_MARGIN_SECONDS <= KUBERNETES_GRACE_SECONDS


@pytest.mark.parametrize(
    "probes",
    [CONTAINER, RUNTIME["spec"]["containers"][0], STACK["servingEngineSpec"]],
    ids=["manifests", "kserve", "production-stack"],
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
    for pod in (POD["securityContext"], STACK["servingEngineSpec"]["securityContext"]):
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == pod["fsGroup"] == 10001
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (
        CONTAINER["securityContext"],
        RUNTIME["spec"]["containers"][0]["securityContext"],
        STACK["servingEngineSpec"]["containerSecurityContext"],
    ):
        assert container["allowPrivilegeEscalation"] is False
        assert container["readOnlyRootFilesystem"] is True
        assert container["capabilities"] == {"drop": ["ALL"]}
    assert POD["automountServiceAccountToken"] is False


def writable(mounts: list[dict[str, Any]]) -> set[str]:
    return {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}


def test_a_read_only_root_leaves_the_caches_writable() -> None:
    assert {"/models", "/var/cache/river", "/tmp", "/dev/shm"} == writable(
        CONTAINER["volumeMounts"]
    )
    runtime = RUNTIME["spec"]
    assert {"/var/cache/river", "/tmp", "/dev/shm"} == writable(
        runtime["containers"][0]["volumeMounts"]
    )
    for spec in (POD, runtime):
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == volumes
    for build in STACK_BUILDS.values():
        model = build["servingEngineSpec"]["modelSpec"][0]
        assert {"/var/cache/river", "/tmp"} == writable(model["extraVolumeMounts"])


def test_memory_is_above_the_key_value_cache() -> None:
    cache = next(e for e in CONTAINER["env"] if e["name"] == "VLLM_CPU_KVCACHE_SPACE")["value"]
    assert gibibytes(CONTAINER["resources"]["limits"]["memory"]) >= float(cache) + 3


@pytest.mark.parametrize("build", STACK_BUILDS)
def test_the_charts_command_is_rivers(build: str) -> None:
    model = STACK_BUILDS[build]["servingEngineSpec"]["modelSpec"][0]
    path = next(entry["value"] for entry in model["env"] if entry["name"] == "PATH")
    assert path.split(":")[:2] == ["/opt/river/drop-in", "/opt/river/venv/bin"]
    # Its router reads /metrics without a key.
    assert "--river-open-metrics" in model["vllmConfig"]["extraArgs"]
    assert STACK["servingEngineSpec"]["vllmApiKey"]["secretName"] == "river-keys"


def test_images_have_a_version() -> None:
    images = [CONTAINER["image"], RUNTIME["spec"]["containers"][0]["image"]]
    specs = [STACK["routerSpec"]]
    specs += [b["servingEngineSpec"]["modelSpec"][0] for b in STACK_BUILDS.values()]
    images += [f"{spec['repository']}:{spec['tag']}" for spec in specs]
    for image in images:
        assert any(letter.isdigit() for letter in image.rpartition(":")[2]), image
