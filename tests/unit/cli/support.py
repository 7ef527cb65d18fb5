"""The options of ``serve`` that River reads, without vLLM's parser."""

from __future__ import annotations

import argparse

from server.cli.options import add_river_options


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--api-key", nargs="*")
    add_river_options(parser)
    return parser.parse_args(argv)
