"""The options of all tasks, in groups, and the settings that they mean."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.bench.arguments import inner_share, json_object, not_negative, positive, share, whole
from server.bench.endpoint import base_url, read_key
from server.bench.errors import BenchError
from server.bench.options import add_key_options
from server.bench.output.files import OutputFiles
from server.bench.settings import Target
from server.evaluate.data import Selection, read_rows, select
from server.evaluate.settings import OWN_FIELDS, SIDES, Sampling

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_MAX_TOKENS = 512
DEFAULT_CONFIDENCE = 0.95


def add_task_options(parser: argparse.ArgumentParser, shots: int, fields: str) -> None:
    """Everything that tasks share.

    Args:
        shots: how many examples stand before a completion where none are asked for.
        fields: what a row of the data holds.
    """
    parser.add_argument(
        "url",
        metavar="URL",
        nargs="?",
        default=DEFAULT_URL,
        help=f"base of the server: http://HOST:PORT[/v1] (default: {DEFAULT_URL})",
    )
    _add_problem_options(parser, shots, fields)
    _add_answer_options(parser)
    _add_pair_options(parser)
    add_key_options(parser)
    add_key_options(parser, "-b", " of B, where it is another")
    add_output_options(parser)


def _add_problem_options(parser: argparse.ArgumentParser, shots: int, fields: str) -> None:
    add = parser.add_argument_group("problems").add_argument
    add("--data", required=True, metavar="FILE", help=f"JSONL rows with {fields}")
    add("--limit", type=whole(1), metavar="N", help="the first N problems (default: all)")
    add(
        "--api", choices=("completions", "chat"), default="completions", help="default: %(default)s"
    )
    add(
        "--shots",
        type=whole(0),
        metavar="N",
        help=f"solved examples before each question, with --api completions (default: {shots})",
    )
    add(
        "--shots-file",
        metavar="FILE",
        help="take the examples from its head (default: from the head of --data, asking the rest)",
    )
    parser.set_defaults(default_shots=shots)


def _add_answer_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("answers").add_argument
    add("--model", metavar="NAME", help="default: the one that /v1/models lists")
    add(
        "--max-tokens",
        type=whole(1),
        default=DEFAULT_MAX_TOKENS,
        metavar="N",
        help="default: %(default)s",
    )
    add("--temperature", type=not_negative, default=0.0, metavar="T", help="default: 0, greedy")
    add("--top-p", type=share, metavar="P", help="nucleus of sampled answers")
    add("--seed", type=whole(0), metavar="N", help="of sampled answers (default: 0)")
    add("--river", type=json_object, metavar="JSON", help="River's request field")
    add("--extra-body", type=json_object, metavar="JSON", help="more fields of every request")
    add("--no-token-ids", action="store_true", help="do not ask for tokens (other than vLLM)")
    add("--concurrency", type=whole(1), default=1, metavar="N", help="in flight (default: 1)")
    add("--timeout", type=positive, default=600.0, metavar="S", help="per request (default: 600)")


def _add_pair_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "comparison", "With any of the first three, every problem is asked twice: A as above, and B"
    )
    group.add_argument("--river-b", type=json_object, metavar="JSON", help="B's river field")
    group.add_argument("--url-b", metavar="URL", help="B's server (default: A's)")
    group.add_argument("--model-b", metavar="NAME", help="B's model (default: as for A)")
    add_max_loss_option(group)


def add_max_loss_option(group: argparse._ArgumentGroup) -> None:
    """Of whatever compares two sides."""
    group.add_argument(
        "--max-loss",
        type=not_negative,
        metavar="POINTS",
        help="exit status 1 if B's accuracy is lower by more percentage points",
    )


def add_confidence_option(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--confidence",
        type=inner_share,
        default=DEFAULT_CONFIDENCE,
        metavar="C",
        help="of intervals (default: %(default)s)",
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--json", type=Path, metavar="FILE", help="figures, settings and every answer")
    add("--no-progress", action="store_true", help="no progress bar on a terminal either")
    add_confidence_option(group)


def output_file(args: argparse.Namespace) -> Path | None:
    """Checked, so that a long run does not fail at its end.

    Raises:
        BenchError: the file cannot be written.
    """
    OutputFiles(json=args.json).check()
    path: Path | None = args.json
    return path


def sampling(args: argparse.Namespace) -> Sampling:
    """How answers are generated.

    Raises:
        BenchError: options that have no effect together, or a reserved field.
    """
    for name in ("top_p", "seed"):
        if getattr(args, name) is not None and args.temperature == 0:
            option = name.replace("_", "-")
            raise BenchError(f"--{option}: only with --temperature above 0; greedy has no chance")
    if args.top_p == 0:
        raise BenchError("--top-p 0: expected a number above 0, at most 1")
    reserved = OWN_FIELDS & set(args.extra_body or {})
    if reserved:
        names = ", ".join(sorted(reserved))
        raise BenchError(f"--extra-body: {names} has an option of its own or is set by the client")
    return Sampling(
        api=args.api,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed or 0,
        token_ids=not args.no_token_ids,
        extra=args.extra_body,
    )


def selection(args: argparse.Namespace) -> Selection:
    """Which rows are asked, and which are examples.

    Raises:
        BenchError: a bad file, or options that exclude each other.
    """
    if args.api == "chat" and (args.shots or args.shots_file is not None):
        option = "--shots" if args.shots else "--shots-file"
        raise BenchError(f"{option}: not with --api chat, which asks without examples")
    shots = args.default_shots if args.shots is None else args.shots
    if args.shots_file is not None and shots == 0:
        raise BenchError("--shots-file: only with --shots of at least 1")
    data = read_rows(args.data, "--data")
    shots_file = None if args.shots_file is None else read_rows(args.shots_file, "--shots-file")
    return select(data, 0 if args.api == "chat" else shots, shots_file, args.limit)


def sides(args: argparse.Namespace) -> dict[str, Target]:
    """A, and B if anything of it was given.

    Raises:
        BenchError: a bad URL or key, or an option of B where there is no B.
    """
    key = read_key(args.api_key_env, args.api_key_file)
    a = Target(base_url(args.url), args.model, key, args.river)
    own_key = args.api_key_env_b is not None or args.api_key_file_b is not None
    if args.river_b is None and args.url_b is None and args.model_b is None:
        if args.max_loss is not None or own_key:
            option = "--api-key-…-b" if own_key else "--max-loss"
            raise BenchError(f"{option}: only with --river-b, --url-b or --model-b")
        return {SIDES[0]: a}
    key_b = read_key(args.api_key_env_b, args.api_key_file_b) if own_key else key
    base_b = a.base if args.url_b is None else base_url(args.url_b)
    return {SIDES[0]: a, SIDES[1]: Target(base_b, args.model_b or args.model, key_b, args.river_b)}
