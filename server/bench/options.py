"""The options of both commands, in groups, and the settings that they mean."""

from __future__ import annotations

import argparse
from pathlib import Path

from server.bench.arguments import (
    Explain,
    json_object,
    not_negative,
    positive,
    span,
    whole,
)
from server.bench.body import RESERVED, BodyOptions
from server.bench.datasets import Dataset, RandomWords, Span, load_jsonl
from server.bench.errors import BenchError
from server.bench.output.files import OutputFiles
from server.bench.settings import RequestSettings

DEFAULT_WORDS = Span(128, 128)
DEFAULT_TOKENS = Span(64, 64)
DEFAULT_FIELD = "prompt"


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """What is asked, and how."""
    group = parser.add_argument_group("requests")
    add = group.add_argument
    add("--api", choices=("chat", "completions"), default="chat", help="route (default: chat)")
    add("--model", metavar="NAME", help="default: the one that /v1/models lists")
    add("--dataset", metavar="FILE", help="JSONL rows with a prompt or messages; default: random")
    add("--prompt-field", metavar="NAME", help=f"text field of a row (default: {DEFAULT_FIELD})")
    add(
        "--prompt-words",
        type=span,
        metavar="N|LOW:HIGH",
        help=f"words of a random prompt (default: {DEFAULT_WORDS})",
    )
    add(
        "--output-tokens",
        type=span,
        default=DEFAULT_TOKENS,
        metavar="N|LOW:HIGH",
        help=f"max_tokens where a row has none (default: {DEFAULT_TOKENS})",
    )
    add(
        "--max-completion-tokens",
        action="store_true",
        help="name the limit so in the request, not max_tokens (newer OpenAI chat models)",
    )
    add("--temperature", type=not_negative, default=0.0, metavar="T", help="default: 0")
    add("--ignore-eos", action="store_true", help="always generate max_tokens (vLLM, SGLang)")
    add("--river", type=json_object, metavar="JSON", help="River's request field")
    add("--extra-body", type=json_object, metavar="JSON", help="more fields of every request")
    add("--chunk-usage", action="store_true", help="ask for usage in every chunk (vLLM, SGLang)")
    add("--cache-salt", action="store_true", help="no prefix reuse: a salt per request (vLLM)")
    add("--timeout", type=positive, default=600.0, metavar="S", help="per request (default: 600)")
    add("--seed", type=whole(0), default=0, metavar="N", help="of all chance (default: 0)")


def add_key_options(parser: argparse.ArgumentParser, suffix: str = "", of: str = "") -> None:
    """Keys never stand on a command line, where every user of the machine can read them."""
    group = parser.add_argument_group(f"API key{of}").add_mutually_exclusive_group()
    default = "" if suffix else " (default: OPENAI_API_KEY, if set)"
    group.add_argument(
        f"--api-key-env{suffix}", metavar="NAME", help=f"variable that holds it{default}"
    )
    group.add_argument(f"--api-key-file{suffix}", metavar="FILE", help="file that holds it")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """What is left behind."""
    add = parser.add_argument_group("output").add_argument
    add("--json", type=Path, metavar="FILE", help="everything but the single requests")
    add("--csv", type=Path, metavar="FILE", help="a line per level, or per compared figure")
    add("--requests", type=Path, metavar="FILE", help="a JSON line per request")
    add("--html", type=Path, metavar="FILE", help="report with plots (needs matplotlib)")
    add("--no-progress", action="store_true", help="no progress bar on a terminal either")
    add("--explain", action=Explain, nargs=0, help="print how figures are computed, and exit")


def output_files(args: argparse.Namespace) -> OutputFiles:
    """Checked, so that a long run does not fail at its end.

    Raises:
        BenchError: a file cannot be written.
    """
    files = OutputFiles(args.json, args.csv, args.requests, args.html)
    files.check()
    if files.html is not None:
        from server.bench.output.page import require_plots

        require_plots()
    return files


def request_settings(args: argparse.Namespace) -> RequestSettings:
    """What ``add_request_options`` read.

    Raises:
        BenchError: options that exclude each other, a bad dataset.
    """
    if args.max_completion_tokens and args.api != "chat":
        raise BenchError("--max-completion-tokens: only with --api chat")
    reserved = RESERVED & set(args.extra_body or {})
    if reserved:
        names = ", ".join(sorted(reserved))
        raise BenchError(f"--extra-body: {names} has an option of its own or is set by the client")
    return RequestSettings(
        dataset=_dataset(args),
        body=BodyOptions(
            api=args.api,
            temperature=args.temperature,
            ignore_eos=args.ignore_eos,
            max_completion_tokens=args.max_completion_tokens,
            chunk_usage=args.chunk_usage,
            cache_salt=args.cache_salt,
            river=args.river,
            extra=args.extra_body,
        ),
        seed=args.seed,
        timeout=args.timeout,
        fixed_lengths=args.dataset is None,
    )


def _dataset(args: argparse.Namespace) -> Dataset:
    if args.dataset is None:
        if args.prompt_field is not None:
            raise BenchError("--prompt-field: only with --dataset")
        return RandomWords(args.prompt_words or DEFAULT_WORDS, args.output_tokens, args.seed)
    if args.prompt_words is not None:
        raise BenchError("--prompt-words: not with --dataset, whose prompts are as they are")
    field = args.prompt_field or DEFAULT_FIELD
    return load_jsonl(args.dataset, field, args.output_tokens, args.seed, args.api == "chat")
