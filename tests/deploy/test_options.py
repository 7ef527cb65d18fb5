"""The commands in the deployment's files are commands that River's programs take."""

from __future__ import annotations

import shlex

import pytest

from server.cli.main import build_parser
from tests.deploy.files import compose, server_arguments

ARGUMENTS = server_arguments()


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


def test_more_options_from_the_environment_file_reach_the_server() -> None:
    pytest.importorskip("vllm", reason="needs vLLM, whose parser this is")
    from server.cli.serve import parse

    services = compose(RIVER_ARGS="--river-threshold 0.9 --max-model-len 4096")["services"]
    args = parse(shlex.split(services["river-cpu"]["command"]))
    assert (args.river_threshold, args.max_model_len) == (0.9, 4096)


def test_load_test_takes_its_options() -> None:
    words = shlex.split(compose()["services"]["loadtest"]["command"])
    args = build_parser().parse_args(["bench", *words])
    assert args.url == words[0]
    assert args.concurrency == [1, 2, 4] or args.concurrency == (1, 2, 4)
    assert str(args.html).startswith("/results/")
