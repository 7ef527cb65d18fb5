"""``river-vllm calibrate MODEL``: settings for a target, with a guarantee."""

from __future__ import annotations

import argparse

from server.bench.arguments import OneLineParser, add_one_line_parser
from server.calibrate.options import add_options

_HELP = "choose τ for a target agreement, divergence or depth, with a finite-sample guarantee"

_DESCRIPTION = f"""\
{_HELP[:1].upper()}{_HELP[1:]}.

The backbone answers prompts, and passes with exits are compared with it along these answers: the
likeliest token, the KL divergence, K and V. Candidates are chosen on some of the prompts and tested
on the others; docs/calibration.md says what is guaranteed. Exit status 0 if settings were shown to
keep the target (with --check: those of the file), 1 if none were.
"""


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Register ``calibrate``; the parsed namespace's ``run`` takes it, returns an exit status."""
    parser = add_one_line_parser(
        subparsers, "calibrate", OneLineParser, _HELP, _DESCRIPTION, allow_abbrev=False
    )
    add_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from server.calibrate.run_command import run_command

    return run_command(args)
