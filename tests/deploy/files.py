"""The deployment's files as data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
KUBERNETES = DEPLOY / "kubernetes"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))

VARIABLE = re.compile(r"\$\{(\w+):-([^{}]*)\}")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def load_all(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def compose_variables() -> dict[str, str]:
    """Each variable of compose.yaml with its default; one default per name."""
    found: dict[str, str] = {}
    for name, default in VARIABLE.findall(COMPOSE.read_text(encoding="utf-8")):
        assert found.setdefault(name, default) == default, f"{name} has two defaults"
    return found


def compose(**variables: str) -> Any:
    """compose.yaml as Compose sees it: defaults put in, or the values given.

    After the file has been read, as Compose does it: an empty value is an empty string.
    """

    def filled(node: Any) -> Any:
        if isinstance(node, str):
            text = VARIABLE.sub(lambda match: variables.get(match[1], match[2]), node)
            assert "${" not in text, f"a variable without a default: {text}"
            return text
        if isinstance(node, dict):
            return {key: filled(value) for key, value in node.items()}
        return [filled(value) for value in node] if isinstance(node, list) else node

    return filled(load(COMPOSE))


def seconds(text: str) -> int:
    """``90s`` or ``2m`` as a number."""
    units = {"s": 1, "m": 60, "h": 3600}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([smh])", text))


def gibibytes(text: str) -> float:
    """``12g``, ``512m`` or Kubernetes' ``12Gi`` as GiB."""
    number, unit = re.fullmatch(r"(\d+)([gmGM])i?", text).groups()  # type: ignore[union-attr]
    return int(number) * {"g": 1.0, "m": 1 / 1024}[unit.lower()]


def option(arguments: list[str], name: str) -> str:
    """The value of ``--name VALUE`` or ``--name=VALUE``."""
    for index, argument in enumerate(arguments):
        if argument == name:
            return arguments[index + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    raise AssertionError(f"no {name} among {arguments}")


def server_arguments() -> dict[str, list[str]]:
    """What every file of the deployment passes to ``river-vllm serve``, by where it stands."""
    services = compose()["services"]
    found = {
        f"compose {name}": shlex.split(services[name]["command"])
        for name in ("river-cpu", "river-gpu")
    }
    for build in ("cpu", "gpu"):
        pod = load(KUBERNETES / f"river-{build}.yaml")["spec"]["template"]["spec"]
        found[f"kubernetes {build}"] = pod["containers"][0]["args"]
    runtime = load_all(KUBERNETES / "kserve.yaml")[0]
    found["kserve"] = runtime["spec"]["containers"][0]["args"]
    for build in ("cpu", "gpu"):
        values = load(KUBERNETES / f"production-stack-{build}.yaml")
        model = values["servingEngineSpec"]["modelSpec"][0]
        found[f"production-stack {build}"] = [
            model["modelURL"],
            *model["vllmConfig"]["extraArgs"],
        ]
    return found


def walk(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping inside ``node``."""
    if isinstance(node, Mapping):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def concrete(expression: str) -> str:
    """Grafana's variables replaced by values of their kind."""
    values = {
        "$__rate_interval": "1m",
        "$__range": "30m",
        "$instance": ".*",
        "$model": ".*",
    }
    for name, value in values.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression
