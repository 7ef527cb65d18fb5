"""``river-vllm``: serve, calibrate, quantize, and the tools that need neither torch nor vLLM."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from river_vllm import __version__
from river_vllm.errors import RiverError
from server.bench.options import CompareOptions
from server.calibrate.options import CalibrateOptions
from server.cli.arguments import OneLineParser, add_command
from server.eval.options import EvalOptions
from server.models import add_parser as add_models
from server.quantize.options import QuantizeOptions

SERVE_HELP = "serve a model with River over the OpenAI API (takes every option of vLLM's server)"


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; vLLM's parser reads the options of ``serve``."""
    parser: argparse.ArgumentParser = OneLineParser(
        prog="river-vllm",
        description="Drafts and early exits for vLLM, on stock checkpoints.",
    )
    parser.add_argument("--version", action="version", version=f"river-vllm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("serve", help=SERVE_HELP, add_help=False)
    bench = commands.add_parser("bench", help="compare two endpoints of any OpenAI-compatible kind")
    inner = bench.add_subparsers(metavar="COMMAND", required=True, parser_class=OneLineParser)
    add_command(inner, "compare", CompareOptions, "server.bench.command:compare")
    add_command(commands, "calibrate", CalibrateOptions, "server.calibrate.command:calibrate")
    add_command(commands, "eval", EvalOptions, "server.eval.command:evaluate")
    add_command(commands, "quantize", QuantizeOptions, "server.quantize.command:quantize")
    add_models(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 only on success, 2 for a wrong argument."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["serve"]:
            from server.cli.serve import serve

            return serve(arguments[1:])
        parsed = build_parser().parse_args(arguments)
        status: int = parsed.run(parsed)
        return status
    except RiverError as error:
        print(f"river-vllm: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
