"""``eval`` as a subcommand of ``river-vllm``."""

from __future__ import annotations

import argparse

from server.bench.arguments import OneLineParser, add_one_line_parser
from server.evaluate.compare_command import add_compare_options
from server.evaluate.run_command import add_gsm8k_options, add_humaneval_options

_HELP = "quality of the answers of an OpenAI-compatible endpoint, and comparison of two settings"

_DESCRIPTION = f"""\
{_HELP[:1].upper()}{_HELP[1:]}.

  river-vllm eval gsm8k URL --data FILE      word problems, judged by the number
  river-vllm eval humaneval URL --data FILE  functions, judged by running their tests
  river-vllm eval compare A.json B.json      two saved evaluations of the same problems
"""


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Register ``eval``; the parsed namespace's ``run`` takes it and returns an exit status."""
    parser = add_one_line_parser(subparsers, "eval", OneLineParser, _HELP, _DESCRIPTION)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=OneLineParser
    )
    for name, about, add_options in (
        ("gsm8k", "word problems with a number as answer", add_gsm8k_options),
        ("humaneval", "functions to complete; RUNS the model's programs", add_humaneval_options),
        ("compare", "compare two saved evaluations", add_compare_options),
    ):
        add_options(commands.add_parser(name, help=about, description=about, allow_abbrev=False))
