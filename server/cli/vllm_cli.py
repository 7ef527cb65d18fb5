"""vLLM's own ``serve`` command, for River's to stand on (vLLM ``entrypoints/cli/serve.py``)."""

from __future__ import annotations

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

__all__ = ["FlexibleArgumentParser", "ServeSubcommand", "make_arg_parser"]
