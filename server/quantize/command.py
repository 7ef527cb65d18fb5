"""``river-vllm quantize MODEL``: the parser."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.bench.arguments import OneLineParser, add_one_line_parser, positive, whole
from server.calibrate.options import add_engine_limits

_HELP = "make the river's 4-bit weights by GPTQ, with a calibration text, for 'serve'"

_DESCRIPTION = f"""\
{_HELP[:1].upper()}{_HELP[1:]}.

The backbone reads prompts and answers; the inputs of each projection decide how its weight is
rounded. 'serve MODEL --river-quantizer gptq' finds the result, or --river-weights names its folder.
"""

GROUP_SIZES = (32, 64, 128)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``quantize``; the parsed namespace's ``run`` takes it, returns an exit status."""
    parser = add_one_line_parser(
        subparsers, "quantize", OneLineParser, _HELP, _DESCRIPTION, allow_abbrev=False
    )
    _add_options(parser)
    parser.set_defaults(run=_run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a Hugging Face id or a folder, in bf16")
    add(
        "--group-size",
        type=int,
        choices=GROUP_SIZES,
        default=128,
        help="input features that share a scale (default: %(default)s)",
    )
    add(
        "--integer-zeros",
        action="store_true",
        help="integer zero points, as vLLM's kernels (Marlin, Machete) need; a little less exact",
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the weights (default: where 'serve' looks for them, beside the model)",
    )
    add("--json", type=Path, metavar="FILE", help="what was done, with the error of each layer")
    add("--no-progress", action="store_true", help="no progress bar on a terminal either")
    add = parser.add_argument_group("text", "Like what will be served").add_argument
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        action="append",
        help="JSONL rows with messages, question or prompt, or one prompt per line; more than once "
        "mixes files (default: the model makes up its own)",
    )
    add(
        "--answers",
        metavar="FIELD",
        help="of the JSONL rows: take these texts as answers (default: the model's own, greedy)",
    )
    add(
        "--half",
        choices=("first", "second"),
        help="take the rows with odd, or with even line numbers, and leave the others unseen",
    )
    add(
        "--tokens",
        type=whole(64),
        default=8192,
        metavar="N",
        help="length of the text, prompts and answers together (default: %(default)s)",
    )
    add(
        "--answer-tokens",
        type=whole(0),
        default=128,
        metavar="N",
        help="of each answer at most (default: %(default)s)",
    )
    add("--seed", type=whole(0), default=0, metavar="N", help="of the prompts' order (default: 0)")
    group = parser.add_argument_group("engine")
    add_engine_limits(group, kv_cache_gib=1.0)
    group.add_argument(
        "--hessian-gib",
        type=positive,
        default=4.0,
        metavar="G",
        help="memory for the Hessians; with less, the text is read more often "
        "(default: %(default)s)",
    )


def _run(args: argparse.Namespace) -> int:
    from server.quantize.run_command import run_command

    return run_command(args)
