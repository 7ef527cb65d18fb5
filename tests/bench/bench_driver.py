"""``river-vllm bench`` as a process of its own."""

from __future__ import annotations

import sys

DRIVER = """
import argparse, sys
from server.bench.command import add_parser
parser = argparse.ArgumentParser(prog="river-vllm")
add_parser(parser.add_subparsers())
args = parser.parse_args()
sys.exit(args.run(args))
"""


def command_line(*words: object) -> list[str]:
    """The arguments of a process that runs ``river-vllm bench`` with ``words``."""
    return [sys.executable, "-c", DRIVER, "bench", *map(str, words)]
