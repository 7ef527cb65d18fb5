"""docs/deployment.md speaks of files, alerts, variables and services that exist."""

from __future__ import annotations

import re

from tests.deploy.files import DEPLOY, ROOT, compose, compose_variables
from tests.deploy.test_prometheus import ALERTS
from tests.deploy.test_secrets import named_secrets

TEXT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def test_files_exist() -> None:
    paths = set(re.findall(r"\b(?:deploy|tests)/[\w./-]*\w", TEXT))
    assert len(paths) > 10
    for path in paths:
        written = path == "deploy/.env" or path.startswith("deploy/secrets")
        assert written or (ROOT / path).exists(), path


def test_programs_in_the_image_exist() -> None:
    for path in re.findall(r"/opt/river/([\w./-]*\w)", TEXT):
        assert (DEPLOY / "image" / path).exists(), path


def test_every_alert_is_explained() -> None:
    assert {rule["alert"] for rule in ALERTS} == set(re.findall(r"`(River[A-Z]\w+)`", TEXT))


def test_variables_and_options_exist() -> None:
    image = (DEPLOY / "image" / "healthcheck.py").read_text()
    provisioning = {"RIVER_PROMETHEUS_URL", "RIVER_DASHBOARDS"}
    named = set(re.findall(r"\b(?:RIVER|LOADTEST)_[A-Z_]+\b", TEXT)) - provisioning
    assert {name for name in named if name not in image} <= set(compose_variables())


def test_profiles_services_and_keys_exist() -> None:
    services = compose()["services"]
    profiles = {name for service in services.values() for name in service["profiles"]}
    assert set(re.findall(r"--profile (\w+)", TEXT)) == profiles
    assert "river-cpu" in services
    assert set(re.findall(r"^\| `([a-z_]+)` \|", TEXT, re.MULTILINE)) == named_secrets()
