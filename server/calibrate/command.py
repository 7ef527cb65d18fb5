"""``river-vllm calibrate MODEL``: settings for a target, with a guarantee."""

from __future__ import annotations

import argparse

from server.calibrate.options import CalibrateOptions
from server.cli.arguments import Commands, add_command

ABOUT = """\
The backbone answers prompts, and passes with exits are compared with it along these answers: is the
likeliest token the same? Candidates are chosen on some of the prompts and tested
on the others; docs/calibration.md says what is guaranteed. Exit status 0 if settings were shown to
keep the target (with --check: those of the file), 1 if none were."""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Register ``calibrate``."""
    add_command(commands, "calibrate", CalibrateOptions, _run, ABOUT)


def _run(options: CalibrateOptions) -> int:
    from server.calibrate.run_command import run_command

    return run_command(options)
