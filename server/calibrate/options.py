"""The options of ``river-vllm calibrate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.bench.arguments import inner_share, positive, whole
from server.bench.errors import BenchError
from server.bench.output.files import OutputFiles

DEFAULT_AGREEMENT = 0.98
DEFAULT_DELTA = 0.1
DEFAULT_TOKENS = 16
DEFAULT_PILOT = 64
PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every option, in groups."""
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face id or a folder, in bf16")
    _add_target_options(parser)
    _add_prompt_options(parser)
    _add_engine_options(parser)
    add = parser.add_argument_group("output").add_argument
    add("--output", type=Path, metavar="FILE", help="river config (YAML) for 'serve'")
    add("--json", type=Path, metavar="FILE", help="everything that was measured")
    add("--plot", type=Path, metavar="FILE", help="cost against depth: .png, .svg or .pdf")
    add("--no-progress", action="store_true", help="no progress bar on a terminal either")


def _add_target_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target", "One of the first three")
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--target-agreement",
        type=inner_share,
        metavar="SHARE",
        help="the river's likeliest next token is the backbone's at least this often "
        f"(default: {DEFAULT_AGREEMENT})",
    )
    one.add_argument(
        "--target-kl",
        type=positive,
        metavar="NATS",
        help="KL(backbone ‖ river) of at most this; a token counts 1 nat at most",
    )
    one.add_argument(
        "--target-depth",
        type=positive,
        metavar="LAYERS",
        help="backbone layers of a token of at most this, in the mean",
    )
    group.add_argument(
        "--delta",
        type=inner_share,
        default=DEFAULT_DELTA,
        metavar="P",
        help="probability with which the guarantee may fail (default: %(default)s)",
    )
    group.add_argument(
        "--check",
        type=Path,
        metavar="FILE",
        help="choose nothing: test the settings of this river config on the prompts",
    )


def _add_prompt_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "prompts", "Prompts like those that will be served: the guarantee is for these"
    )
    add = group.add_argument
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        action="append",
        help="JSONL rows with messages, question or prompt, or one prompt per line; more than once "
        "mixes files (default: the model makes up its own)",
    )
    add(
        "--test-prompts",
        type=whole(1),
        metavar="N",
        help="prompts for the test (default: what the target needs, as far as the files go; all "
        "with --check)",
    )
    add(
        "--pilot-prompts",
        type=whole(8),
        default=DEFAULT_PILOT,
        metavar="N",
        help="other prompts, for choosing candidates (default: %(default)s)",
    )
    add(
        "--tokens",
        type=whole(2),
        default=DEFAULT_TOKENS,
        metavar="N",
        help="answer tokens per prompt; many short answers prove more than few long ones "
        "(default: %(default)s)",
    )
    add(
        "--answers",
        metavar="FIELD",
        help="of the JSONL rows: take these texts as answers (default: the backbone's own, "
        "greedy, as with a server)",
    )
    add(
        "--half",
        choices=("first", "second"),
        help="take the rows with odd, or with even line numbers, and leave the others unseen",
    )
    add("--seed", type=whole(0), default=0, metavar="N", help="of the prompts' order (default: 0)")


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "engine", "As it will be served; what changes the river's numbers goes into the output"
    )
    add = group.add_argument
    add("--river-config", metavar="FILE", help="YAML or JSON file of River settings to start from")
    add("--river-quantizer", metavar="NAME", help="how the 4-bit weights are made")
    add("--river-weights", metavar="DIR", help="the layers already in 4 bit")
    add("--river-group-size", type=whole(1), metavar="N", help="input features per scale")
    add("--river-criterion", metavar="NAME", help="what τ is compared with: cosine or norm")
    add("--river-activations", metavar="NAME", help="bf16 or int8")
    add("--river-lm-head", metavar="NAME", help="backbone or river")
    add(
        "--river-kernel",
        metavar="NAME",
        help="of the server: with 'vllm' zero points are rounded, in the test too",
    )
    add_engine_limits(group, kv_cache_gib=2.0)


def add_engine_limits(group: argparse._ArgumentGroup, kv_cache_gib: float) -> None:
    """What an engine that is started for a measurement reads and holds."""
    add = group.add_argument
    add("--revision", metavar="NAME", help="of a hub checkpoint")
    add(
        "--max-model-len",
        type=whole(64),
        default=1024,
        metavar="N",
        help="longest text in tokens; longer prompts are left out (default: %(default)s)",
    )
    add(
        "--kv-cache-gib",
        type=positive,
        default=kv_cache_gib,
        metavar="G",
        help="memory for K and V; prompts that fit are computed once (default: %(default)s)",
    )


def check_outputs(args: argparse.Namespace) -> None:
    """Find out now what would fail after minutes.

    Raises:
        BenchError: a file cannot be written, or two share a name, or the plot's suffix is unknown.
    """
    for name in ("output", "json", "plot"):
        path = getattr(args, name)
        if path is not None:
            try:
                OutputFiles(json=path).check()
            except BenchError as error:
                raise BenchError(str(error).replace("--json", f"--{name}", 1)) from None
    paths = [p.resolve() for p in (args.output, args.json, args.plot) if p is not None]
    if len(set(paths)) < len(paths):
        raise BenchError("--output, --json and --plot: expected different files")
    if args.plot is not None and args.plot.suffix not in PLOT_SUFFIXES:
        raise BenchError(f"--plot '{args.plot}': expected {', '.join(PLOT_SUFFIXES)}")
    if args.answers is not None and not args.prompts:
        raise BenchError("--answers: names a field of the rows of --prompts FILE")
    if args.check is not None and (args.output is not None or args.plot is not None):
        raise BenchError("--check: chooses nothing, so --output and --plot have no place")
