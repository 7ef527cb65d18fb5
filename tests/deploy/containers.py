"""Containers of docker or podman, started as compose.yaml starts them, and requests to them."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import DEPLOY, compose
from tests.deploy.programs import run
from tools.images import engine

MODEL = os.environ.get("RIVER_IMAGES_MODEL")
"""What "make images" serves: a folder, or an id of the Hugging Face Hub."""
only_after_build = pytest.mark.skipif(
    MODEL is None, reason='"make images" builds the images and tries them'
)
START_SECONDS = 1200.0
"""The health check's start period."""
ELSEWHERE = {
    *("build", "command", "expose", "image", "logging", "networks", "profiles", "restart"),
    *("cpuset", "depends_on", "stop_grace_period"),
}
"""What ``options`` leaves out: it is given where a container is started, or starts nothing."""


@dataclass(frozen=True)
class Engine:
    """docker or podman."""

    program: str

    def __call__(self, *words: str | Path) -> str:
        """Standard output of a command that succeeds."""
        return output(self.program, *words)

    def status(self, *words: str) -> int:
        """The exit status of a command that may fail."""
        return subprocess.run([self.program, *words], capture_output=True, timeout=120).returncode

    def state(self, container: str) -> Any:
        """``Running``, ``ExitCode`` and more."""
        return json.loads(output(self.program, "inspect", container))[0]["State"]

    def health_check(self, container: str) -> list[str]:
        """The command that the image's health check runs in a container."""
        configured = json.loads(output(self.program, "inspect", container))[0]["Config"]
        kind, *command = configured["Healthcheck"]["Test"]
        assert kind == "CMD", "docker images in exec form; podman's own format has none"
        return command

    def address(self, container: str, port: int) -> str:
        """Where the host reaches a port that ``run`` published."""
        return f"http://{output(self.program, 'port', container, str(port)).split()[0]}"


def found_engine() -> Engine:
    """The one that built the images."""
    program = engine()
    assert program is not None, "no docker or podman that answers"
    return Engine(program)


def model_in(folder: Path) -> tuple[str, list[str]]:
    """The model's name in a container, and the mounts that put it there.

    A folder is copied, without the 4-bit weights that were saved beside it.
    """
    assert MODEL is not None
    source = Path(MODEL)
    if not source.is_dir():
        return MODEL, []
    place = folder / "model"
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("river"), dirs_exist_ok=True)
    inside = f"/models/{source.resolve().name}"
    return inside, [f"{place}:{inside}:ro"]


def make_secrets(folder: Path) -> dict[str, str]:
    """The key files that an operator makes, and what is in them."""
    run("python3", DEPLOY / "make_secrets.py", "--folder", folder)
    return {path.name: path.read_text().strip() for path in folder.iterdir()}


def command(service: str, **variables: str) -> list[str]:
    """What compose.yaml has ``service`` run, with the variables given."""
    return shlex.split(compose(**variables)["services"][service]["command"])


def options(
    service: str, keys: Path, volumes: Mapping[str, str], **variables: str
) -> list[str | Path]:
    """Options of ``run`` that stand for what compose.yaml says about ``service``.

    Args:
        keys: the folder of the secrets.
        volumes: names of volumes, for those of compose.yaml.
        variables: values of compose.yaml's variables.
    """
    entry = dict(compose(**variables)["services"][service])
    limits = entry.pop("deploy")["resources"]["limits"]
    words = [f"--memory={limits['memory']}", f"--pids-limit={limits['pids']}"]
    words += [f"--env={name}={value}" for name, value in entry.pop("environment").items()]
    words += [f"--volume={keys / name}:/run/secrets/{name}:ro" for name in entry.pop("secrets")]
    for volume in entry.pop("volumes"):
        name, _, rest = volume.partition(":")
        words.append(f"--volume={volumes[name]}:{rest}")
    for key, value in entry.items():
        option = f"--{key.replace('_', '-')}"
        if key in ("read_only", "init"):
            assert value is True
            words.append(option)
        elif key in ("cap_drop", "security_opt", "tmpfs"):
            words += [f"{option}={item}" for item in value]
        elif key in ("user", "shm_size"):
            words.append(f"{option}={value}")
        else:
            assert key in ELSEWHERE, f"{key} of {service} is not carried over"
    return words


def output(
    *words: str | Path, seconds: float = 120, environment: Mapping[str, str] | None = None
) -> str:
    """Standard output of a command that succeeds; its errors are in what is raised."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, env=environment)
    assert done.returncode == 0, f"{words}: {done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def unique(name: str) -> str:
    """A name for a container or volume that no other run uses."""
    return f"river-try-{name}-{secrets.token_hex(3)}"


def ask(url: str, key: str | None = None, body: Any = None) -> tuple[int, Any]:
    """Status and body of an answer, the body as JSON where it is; (0, "") where there is none."""
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, _json(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, _json(error.read())
    except OSError:
        return 0, ""


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
