"""Parts of vLLM's ``serve`` command that River's uses (vLLM ``entrypoints/cli/serve.py``)."""

from __future__ import annotations

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from server.cli.arguments import OneLineParser

__all__ = ["ServeParser", "ServeSubcommand", "make_arg_parser"]


class ServeParser(OneLineParser, FlexibleArgumentParser):
    """vLLM's parser, without its three hundred lines of usage before an error."""
