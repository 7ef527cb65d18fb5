"""``river-vllm bench compare A B``: options, and what becomes of the results."""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import UTC, datetime

from server.bench.arguments import (
    DEFAULT_GATE_METRIC,
    distinct,
    gate,
    inner_share,
    json_object,
    whole,
)
from server.bench.compare.output import (
    compare_document,
    print_comparison,
    ratio_lines,
    request_lines,
)
from server.bench.compare.ratios import CompareReport, measure_comparison
from server.bench.compare.rounds import Comparer, Comparison
from server.bench.endpoint import base_url, read_key
from server.bench.errors import BenchError
from server.bench.options import (
    add_key_options,
    add_output_options,
    add_request_options,
    output_files,
    request_settings,
)
from server.bench.output.files import OutputFiles, write_csv, write_json, write_lines, write_text
from server.bench.output.table import make_console
from server.bench.progress import Bar
from server.bench.settings import CompareSettings, Target


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Everything of ``compare``."""
    parser.add_argument("a", metavar="A", help="base of the first server, the reference")
    parser.add_argument("b", metavar="B", help="base of the second server")
    add = parser.add_argument_group("comparison").add_argument
    add("--rounds", type=whole(1), default=20, metavar="N", help="A and B each (default: 20)")
    add("--concurrency", type=whole(1), default=1, metavar="N", help="in flight (default: 1)")
    add("--block", type=whole(1), metavar="N", help="requests per round (default: concurrency)")
    add("--warmup", type=whole(0), default=2, metavar="N", help="to each side (default: 2)")
    add("--wake", type=whole(0), default=0, metavar="N", help="before each turn (default: 0)")
    add("--confidence", type=inner_share, default=0.95, metavar="C", help="default: 0.95")
    add(
        "--fail-below",
        type=gate,
        action="append",
        metavar="[METRIC:]RATIO",
        help="exit status 1 if B's median ratio is lower, or B fails more requests; "
        f"METRIC is {DEFAULT_GATE_METRIC} where none is named; may be repeated",
    )
    for side in ("a", "b"):
        name = side.upper()
        add(f"--model-{side}", metavar="NAME", help=f"model of {name}, over --model")
        add(f"--river-{side}", type=json_object, metavar="JSON", help=f"{name}'s river field")
    add_request_options(parser)
    add_key_options(parser)
    add_key_options(parser, "-b", " of B, where it is another")
    add_output_options(parser)


def compare_command(args: argparse.Namespace) -> int:
    """Run the comparison that ``args`` describe; the exit status."""
    try:
        settings, files = _settings(args), output_files(args)
        started = datetime.now(UTC)
        with Bar(not args.no_progress) as bar:
            comparison = asyncio.run(Comparer(settings, bar).run())
    except BenchError as error:
        print(f"river-vllm bench compare: error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("river-vllm bench compare: interrupted before it began", file=sys.stderr)
        return 130
    report = measure_comparison(settings, comparison)
    print_comparison(make_console(), settings, comparison, report)
    _write(files, settings, comparison, report, started)
    if comparison.interrupted:
        return 130
    return 1 if report.verdicts else 0


def _settings(args: argparse.Namespace) -> CompareSettings:
    key = read_key(args.api_key_env, args.api_key_file)
    key_b = key
    if args.api_key_env_b is not None or args.api_key_file_b is not None:
        key_b = read_key(args.api_key_env_b, args.api_key_file_b)
    return CompareSettings(
        a=Target(base_url(args.a), args.model_a or args.model, key, args.river_a),
        b=Target(base_url(args.b), args.model_b or args.model, key_b, args.river_b),
        requests=request_settings(args),
        concurrency=args.concurrency,
        block=args.block or args.concurrency,
        rounds=args.rounds,
        warmup=args.warmup,
        wake=args.wake,
        confidence=args.confidence,
        gates=distinct(args.fail_below or [], "--fail-below", lambda item: item.metric),
    )


def _write(
    files: OutputFiles,
    settings: CompareSettings,
    comparison: Comparison,
    report: CompareReport,
    started: datetime,
) -> None:
    command = ["river-vllm", *sys.argv[1:]]
    document = compare_document(settings, comparison, report, command, started)
    if files.json:
        write_json(files.json, document)
    if files.csv:
        write_csv(files.csv, ratio_lines(report.ratios))
    if files.requests:
        write_lines(files.requests, request_lines(comparison))
    if files.html:
        from server.bench.compare.html import compare_page

        write_text(files.html, compare_page(settings, report, document))
