"""``river-vllm quantize MODEL``: GPTQ weights for the river."""

from __future__ import annotations

import argparse

from server.cli.arguments import Commands, add_command
from server.quantize.options import QuantizeOptions

ABOUT = """\
The backbone reads prompts and answers; the inputs of each projection decide how its weight is
rounded. 'serve MODEL --river-quantizer gptq' finds the result, or --river-weights names its
folder."""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Register ``quantize``."""
    add_command(commands, "quantize", QuantizeOptions, _run, ABOUT)


def _run(options: QuantizeOptions) -> int:
    from server.quantize.run_command import run_command

    return run_command(options)
