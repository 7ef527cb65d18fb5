"""``river-vllm bench [run] URL``: options, and what becomes of the results."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import replace
from datetime import UTC, datetime

from server.bench.arguments import distinct, listed, positive, share, slo, whole
from server.bench.endpoint import base_url, read_key
from server.bench.errors import BenchError
from server.bench.load import Level, Limits
from server.bench.options import (
    add_key_options,
    add_output_options,
    add_request_options,
    output_files,
    request_settings,
)
from server.bench.output.document import run_document
from server.bench.output.files import OutputFiles, write_csv, write_json, write_lines, write_text
from server.bench.output.rows import flat_level, run_lines
from server.bench.output.table import make_console, print_run
from server.bench.progress import Bar
from server.bench.run import Benchmark, RunResult, exit_status
from server.bench.settings import RunSettings, Target

DEFAULT_COUNT = 50


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Everything of ``run``."""
    parser.add_argument("url", metavar="URL", help="base of the server: http://HOST:PORT[/v1]")
    load = parser.add_argument_group("load")
    shape = load.add_mutually_exclusive_group()
    shape.add_argument(
        "--concurrency",
        type=listed(whole(1)),
        metavar="N[,N…]",
        help="closed loop: requests in flight; several make a sweep (default: 1)",
    )
    shape.add_argument(
        "--rate",
        type=listed(positive),
        metavar="R[,R…]",
        help="open loop: requests per second, sent whether or not answers come",
    )
    add = load.add_argument
    add("--arrivals", choices=("poisson", "constant"), help="of --rate (default: poisson)")
    add(
        "--num-requests",
        type=whole(1),
        metavar="N",
        help=f"per level (default: {DEFAULT_COUNT}, without end if --duration is given)",
    )
    add("--duration", type=positive, metavar="S", help="stop sending after S seconds per level")
    add("--warmup", type=whole(0), default=1, metavar="N", help="before each level (default: 1)")
    add("--cancel-rate", type=share, metavar="P", help="share of requests left in mid-stream")
    add("--cancel-after", type=whole(1), metavar="K", help="tokens before leaving (default: 1)")
    add(
        "--slo",
        type=slo,
        action="append",
        metavar="METRIC:MS",
        help="objective for goodput: ttft, itl, tpot or e2e; may be repeated",
    )
    add(
        "--max-failures",
        type=share,
        default=1.0,
        metavar="P",
        help="exit status 1 above this share of failed requests (default: only if all fail)",
    )
    add_request_options(parser)
    add_key_options(parser)
    add_output_options(parser)


def run_command(args: argparse.Namespace) -> int:
    """Run the load test that ``args`` describe; the exit status."""
    try:
        settings, files = _settings(args), output_files(args)
        started = datetime.now(UTC)
        with Bar(not args.no_progress) as bar:
            result = asyncio.run(Benchmark(settings, bar).run())
    except BenchError as error:
        print(f"river-vllm bench: error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("river-vllm bench: interrupted before anything was measured", file=sys.stderr)
        return 130
    print_run(make_console(), result)
    _write(files, settings, result, started)
    return exit_status(settings, result)


def _settings(args: argparse.Namespace) -> RunSettings:
    if args.arrivals is not None and args.rate is None:
        raise BenchError("--arrivals: only with --rate")
    if args.cancel_after is not None and args.cancel_rate is None:
        raise BenchError("--cancel-after: only with --cancel-rate")
    requests = replace(
        request_settings(args),
        cancel_rate=args.cancel_rate or 0.0,
        cancel_after=args.cancel_after or 1,
    )
    key = read_key(args.api_key_env, args.api_key_file)
    if args.rate is not None:
        levels = tuple(Level(rate=rate) for rate in args.rate)
    else:
        levels = tuple(Level(concurrency=number) for number in args.concurrency or [1])
    endless = args.num_requests is None and args.duration is None
    return RunSettings(
        target=Target(base_url(args.url), args.model, key),
        requests=requests,
        levels=levels,
        limits=Limits(DEFAULT_COUNT if endless else args.num_requests, args.duration),
        warmup=args.warmup,
        arrivals=args.arrivals or "poisson",
        slos=distinct(args.slo or [], "--slo", lambda item: item.metric),
        max_failure_share=args.max_failures,
    )


def _write(files: OutputFiles, settings: RunSettings, result: RunResult, started: datetime) -> None:
    document = run_document(settings, result, ["river-vllm", *sys.argv[1:]], started)
    if files.json:
        write_json(files.json, document)
    if files.csv:
        write_csv(files.csv, [flat_level(level) for level in result.levels])
    if files.requests:
        write_lines(files.requests, run_lines(result))
    if files.html:
        from server.bench.output.html import run_page

        write_text(files.html, run_page(result, document))
