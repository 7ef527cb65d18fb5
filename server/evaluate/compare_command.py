"""``river-vllm eval compare A.json B.json``: two saved evaluations of the same problems."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.bench.errors import BenchError
from server.bench.output.document import metadata
from server.bench.output.table import make_console
from server.evaluate.figures.report import Report, make_report
from server.evaluate.options import add_confidence_option, add_max_loss_option, output_file
from server.evaluate.output.document import figures, write_document
from server.evaluate.output.table import print_report, side_heading
from server.evaluate.saved import SavedRun, check_comparable, differing_settings, read_run
from server.evaluate.settings import SIDES


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A.json", help="an evaluation of one setting, the reference")
    parser.add_argument("b", metavar="B.json", help="another one of the same problems")
    group = parser.add_argument_group("comparison")
    add_max_loss_option(group)
    add_confidence_option(group)
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    parser.set_defaults(run=compare_command)


def compare_command(args: argparse.Namespace) -> int:
    """Compare the runs that ``args`` name; the exit status."""
    try:
        file = output_file(args)
        runs = dict(zip(SIDES, (read_run(args.a), read_run(args.b)), strict=True))
        check_comparable(*runs.values())
    except BenchError as error:
        print(f"river-vllm eval compare: error: {error}", file=sys.stderr)
        return error.status
    answers = {side: run.answers for side, run in runs.items()}
    problems = len(answers[SIDES[0]])
    report = make_report(answers, problems, args.confidence, args.max_loss)
    report.warnings += differing_settings(*runs.values())
    headings = {
        side: side_heading(run.side.url, run.side.model, run.side.river)
        for side, run in runs.items()
    }
    print_report(make_console(), headings, report, args.confidence)
    if file is not None:
        write_document(file, _document(args, runs, report))
    return 1 if report.failures else 0


def _document(
    args: argparse.Namespace, runs: dict[str, SavedRun], report: Report
) -> dict[str, Any]:
    run = runs[SIDES[0]]
    command = ["river-vllm", *sys.argv[1:]]
    return metadata("eval-compare", command, datetime.now(UTC)) | {
        "task": run.task,
        "data": {"name": run.data.name, "sha256": run.data.sha256},
        "files": dict(zip(SIDES, (args.a, args.b), strict=True)),
        "confidence": args.confidence,
        "max_loss": args.max_loss,
        **figures(report),
    }
