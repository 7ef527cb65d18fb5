"""vLLM's whole application with River's plugin, and no engine behind it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import vllm.envs as envs

from server.cli.options import add_river_options

TASKS = ("generate", "transcription", "realtime", "render", "embed", "classify")


@contextmanager
def vllm_app(*options: str, environment: dict[str, str] | None = None) -> Iterator[Any]:
    """As ``vllm serve`` with ``options`` makes it, with the routes of vLLM's development mode."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    root = logging.getLogger()
    level = root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VLLM_API_KEY", raising=False)
        variables = {"VLLM_PLUGINS": "river", "VLLM_SERVER_DEV_MODE": "1", **(environment or {})}
        for name, value in variables.items():
            patch.setenv(name, value)
        # An engine of this process has frozen what vLLM reads from the environment.
        envs.disable_envs_cache()
        parser = make_arg_parser(FlexibleArgumentParser())
        add_river_options(parser)
        args = parser.parse_args(list(options))
        args.enable_scale_out = args.enable_tokenizer_info_endpoint = True
        made = build_app(args, TASKS)
        # What vLLM's SageMaker routes import silences every logger below ERROR.
        root.setLevel(level)
        made.state.river = None
        yield made
