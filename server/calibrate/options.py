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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every option, in groups."""
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face id or a folder, in bf16")
    _add_target_options(parser)
    _add_prompt_options(parser)
    _add_engine_options(parser)
    add = parser.add_argument_group("output").add_argument
    add("--output", type=Path, metavar="FILE", help="river config (YAML) for 'serve'")
    add("--json", type=Path, metavar="FILE", help="everything that was measured")
    add("--no-progress", action="store_true", help="no progress bar on a terminal either")


def _add_target_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target", "One of the first three options")
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--target-agreement",
        type=inner_share,
        metavar="SHARE",
        help="share of answer tokens whose likeliest next token is the backbone's, at least "
        f"(default: {DEFAULT_AGREEMENT})",
    )
    one.add_argument(
        "--target-kl",
        type=positive,
        metavar="NATS",
        help="KL(backbone ‖ river) in nats, at most; a token counts 1 nat at most",
    )
    one.add_argument(
        "--target-depth",
        type=positive,
        metavar="LAYERS",
        help="mean number of backbone layers of a token, at most",
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
        "prompts", "Prompts like those that will be served: the guarantee is for such prompts"
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
        "engine", "Give what 'serve' will be given: the guarantee depends on it"
    )
    add = group.add_argument
    add("--river-config", metavar="FILE", help="YAML or JSON file of River settings to start from")
    add("--river-quantizer", metavar="NAME", help="how the 4-bit weights are made")
    add("--river-weights", metavar="DIR", help="folder with the layers already in 4 bit")
    add("--river-group-size", type=whole(1), metavar="N", help="input features that share a scale")
    add("--river-criterion", metavar="NAME", help="what τ is compared with: cosine or norm")
    add("--river-activations", metavar="NAME", help="what 4-bit products multiply by: bf16 or int8")
    add("--river-lm-head", metavar="NAME", help="the backbone's bf16 one, or the river's in 4 bit")
    add(
        "--river-kernel",
        metavar="NAME",
        help="4-bit product of the server; with 'vllm' the test has its integer zero points too",
    )
    add_engine_limits(group, kv_cache_gib=2.0)


def add_engine_limits(group: argparse._ArgumentGroup, kv_cache_gib: float) -> None:
    """Options of an engine that is started to measure: the text it reads, the memory it takes."""
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
        BenchError: a file cannot be written, or options do not go together.
    """
    OutputFiles(json=args.json).check()
    try:
        OutputFiles(json=args.output).check()
    except BenchError as error:
        raise BenchError(str(error).replace("--json", "--output", 1)) from None
    if args.output and args.json and args.output.resolve() == args.json.resolve():
        raise BenchError("--output, --json: expected different files")
    if args.answers is not None and not args.prompts:
        raise BenchError("--answers: names a field of the rows of --prompts FILE")
    if args.check is not None and args.output is not None:
        raise BenchError("--check: chooses nothing, so --output has no place")
