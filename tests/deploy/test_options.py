"""The commands in the deployment's files are commands that River's programs take."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, compose, load, server_arguments

ARGUMENTS = server_arguments()
LOADS = sorted((DEPLOY / "loadtest").glob("*.yaml"))


@pytest.mark.parametrize("place", ARGUMENTS)
def test_server_takes_its_options(place: str) -> None:
    pytest.importorskip("vllm", reason="needs vLLM, whose parser this is")
    from server.cli.serve import parse

    words = [word.replace("{{.Name}}", "name") for word in ARGUMENTS[place]]
    args = parse(words)
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
    for service in ("river-cpu", "river-gpu"):
        assert services[service]["environment"]["RIVER_ARGS"] == more
    assert services["loadtest"]["environment"]["LOADTEST_ARGS"] == more


def test_load_test_names_a_load_that_the_image_holds() -> None:
    words = shlex.split(compose()["services"]["loadtest"]["command"])
    assert words[0] == "--config"
    assert DEPLOY / "loadtest" / words[1].removeprefix("/opt/river/loadtest/") in LOADS


@pytest.mark.parametrize("file", LOADS, ids=lambda file: file.stem)
def test_loads_leave_the_address_to_whoever_runs_them(file: Path) -> None:
    """guidellm itself reads them in its own environment; a target here would win over Compose's."""
    spec = load(file)["spec"]
    assert spec["backend"] == {"kind": "openai_http", "request_format": "/v1/completions"}
    assert {output["path"] for output in spec["outputs"] if "path" in output} == {
        f"{file.stem}.json",
        f"{file.stem}.html",
    }
    assert spec["constraints"]
    assert spec["data"]
