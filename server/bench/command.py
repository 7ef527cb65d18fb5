"""``bench`` as a subcommand of ``river-vllm``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from server.bench.arguments import OneLineParser, add_one_line_parser
from server.bench.compare_command import add_compare_options, compare_command
from server.bench.run_command import add_run_options, run_command

_HELP = "load test of any OpenAI-compatible endpoint, and comparison of two"

_DESCRIPTION = f"""\
{_HELP[:1].upper()}{_HELP[1:]}.

  river-vllm bench URL [options]          short for "bench run URL"
  river-vllm bench compare A B [options]  the same prompts to both, in turn
"""


class _BenchParser(OneLineParser):
    """Takes what names no command of its own for the arguments of ``run``."""

    commands: tuple[str, ...] = ()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        words = list(sys.argv[1:] if args is None else args)
        if not words or words[0] not in (*self.commands, "-h", "--help"):
            words.insert(0, "run")
        return super().parse_known_args(words, namespace)


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Register ``bench``; the parsed namespace's ``run`` takes it and returns an exit status."""
    bench = add_one_line_parser(subparsers, "bench", _BenchParser, _HELP, _DESCRIPTION)
    commands = bench.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=OneLineParser
    )
    run = commands.add_parser("run", help="load one endpoint (the default)", allow_abbrev=False)
    add_run_options(run)
    run.set_defaults(run=run_command)
    compare = commands.add_parser("compare", help="compare two endpoints", allow_abbrev=False)
    add_compare_options(compare)
    compare.set_defaults(run=compare_command)
    bench.commands = tuple(commands.choices)
