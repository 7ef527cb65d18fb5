"""``river-vllm eval gsm8k|humaneval URL``: ask, judge, report."""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import UTC, datetime

from server.bench.arguments import positive, whole
from server.bench.errors import BenchError
from server.bench.output.table import make_console, number
from server.bench.progress import Bar
from server.evaluate.evaluation import Evaluation, Evaluator
from server.evaluate.figures.report import Report, make_report
from server.evaluate.figures.warnings import INTERRUPTED, side_warnings
from server.evaluate.options import add_task_options, output_file, sampling, selection, sides
from server.evaluate.output.document import eval_document, write_document
from server.evaluate.output.table import print_report, side_heading
from server.evaluate.problem import Task
from server.evaluate.sandbox.limits import Limits
from server.evaluate.settings import EvalSettings
from server.evaluate.tasks.gsm8k import RULES, Gsm8k
from server.evaluate.tasks.humaneval import HumanEval

GSM8K_SHOTS = 5


def add_gsm8k_options(parser: argparse.ArgumentParser) -> None:
    add_task_options(parser, GSM8K_SHOTS, "question and answer (ends in '#### NUMBER')")
    parser.add_argument_group("judging").add_argument(
        "--verdict",
        choices=tuple(RULES),
        default="flexible",
        help="the last number, or the last one after '####', decides; both are reported "
        "(default: %(default)s)",
    )
    parser.set_defaults(task="gsm8k", run=run_command)


def add_humaneval_options(parser: argparse.ArgumentParser) -> None:
    add_task_options(parser, 0, "task_id, prompt, entry_point and test")
    default = Limits()
    group = parser.add_argument_group(
        "judging",
        "The model's programs are RUN on this machine, in processes of their own with these "
        "limits. That is no security boundary: use a container or a machine of its own",
    )
    add = group.add_argument
    seconds, wall = default.cpu_seconds, default.wall_seconds
    add("--cpu-seconds", type=whole(1), default=seconds, metavar="S", help=f"default: {seconds}")
    add("--wall-seconds", type=positive, default=wall, metavar="S", help=f"default: {wall:g}")
    add(
        "--memory-mib",
        type=whole(64),
        default=default.memory_mib,
        metavar="N",
        help="address space (default: %(default)s)",
    )
    add("--workers", type=whole(1), default=1, metavar="N", help="at a time (default: 1)")
    parser.set_defaults(task="humaneval", run=run_command)


def run_command(args: argparse.Namespace) -> int:
    """Run the evaluation that ``args`` describe; the exit status."""
    program = f"river-vllm eval {args.task}"
    try:
        settings, file = _settings(args), output_file(args)
        started = datetime.now(UTC)
        with Bar(not args.no_progress) as bar:
            evaluation = asyncio.run(Evaluator(settings, bar).run())
    except BenchError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print(f"{program}: interrupted before anything was judged", file=sys.stderr)
        return 130
    report = _report(settings, evaluation)
    _print(settings, evaluation, report)
    if file is not None:
        command = ["river-vllm", *sys.argv[1:]]
        write_document(file, eval_document(settings, evaluation, report, command, started))
    if evaluation.interrupted:
        return 130
    return 1 if report.failures else 0


def _settings(args: argparse.Namespace) -> EvalSettings:
    chosen, targets, how = selection(args), sides(args), sampling(args)
    task: Task
    if args.task == "gsm8k":
        task = Gsm8k(chosen, how.api, args.verdict)
    else:
        limits = Limits(args.cpu_seconds, args.wall_seconds, args.memory_mib)
        task = HumanEval(chosen, how.api, limits, args.workers)
    return EvalSettings(
        task=task,
        selection=chosen,
        sides=targets,
        sampling=how,
        concurrency=args.concurrency,
        timeout=args.timeout,
        confidence=args.confidence,
        max_loss=args.max_loss,
    )


def _report(settings: EvalSettings, evaluation: Evaluation) -> Report:
    by_side = {
        side: [result for result in evaluation.results if result.side == side]
        for side in settings.sides
    }
    problems = len(settings.task.problems)
    report = make_report(by_side, problems, settings.confidence, settings.max_loss)
    for side, target in settings.sides.items():
        report.warnings += side_warnings(side, report.sides[side], target, by_side[side])
    report.warnings += evaluation.notes + ([INTERRUPTED] if evaluation.interrupted else [])
    return report


def _print(settings: EvalSettings, evaluation: Evaluation, report: Report) -> None:
    console = make_console()
    data, sampling_ = settings.selection.data, settings.sampling
    shots = len(settings.selection.shots)
    how = "greedy" if sampling_.temperature == 0 else f"temperature {sampling_.temperature:g}"
    console.print(
        f"{settings.task.name} · {data.name} · {sampling_.api}, {shots} examples, {how} · "
        f"{number(evaluation.seconds)} s of wall time",
        markup=False,
    )
    headings = {
        side: side_heading(end.base, end.model, settings.sides[side].river)
        for side, end in evaluation.endpoints.items()
    }
    print_report(console, headings, report, settings.confidence)
