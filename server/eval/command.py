"""``river-vllm eval``: lm-eval on each side, then the paired differences from A to B."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from river_vllm import __version__
from river_vllm.errors import RiverError
from server.cli.output import make_console, write_json
from server.eval.options import EvalOptions
from server.eval.sides import HarnessError, ask

if TYPE_CHECKING:
    from server.eval.paired import Paired


def evaluate(options: EvalOptions) -> int:
    """Run the evaluation; the exit status.

    Raises:
        RiverError: the value of an option cannot be used.
    """
    if find_spec("lm_eval") is None:
        raise RiverError("eval needs lm-evaluation-harness: pip install 'river-vllm[eval]'")
    try:
        if options.samples is not None:
            a, b = options.samples
            return _report(options, (a, b), {"A": {"samples": str(a)}, "B": {"samples": str(b)}})
        with tempfile.TemporaryDirectory(prefix="river-eval-") as kept_until_read:
            folder = options.output or Path(kept_until_read)
            folders = folder / "A", folder / "B"
            if any(place.exists() for place in folders):
                raise RiverError(f"--output = '{folder}': expected a folder without A and B in it")
            return _report(options, folders, ask(options, folders))
    except HarnessError as error:
        return abs(error.args[0])
    except KeyboardInterrupt:
        print("river-vllm eval: interrupted", file=sys.stderr)
        return 130


def _report(
    options: EvalOptions, folders: tuple[Path, Path], sides: dict[str, dict[str, Any]]
) -> int:
    from server.eval.paired import METHODS, pair, read_samples

    a, b = map(read_samples, folders)
    found = pair(a, b, options.confidence)
    _print(found, options.confidence)
    failures = [
        f"{one.task} ({one.filter}) {one.metric}: B loses {-100 * one.difference:.2f} points, "
        f"more than --max-loss {options.max_loss:g}"
        for one in found
        if options.max_loss is not None and -100 * one.difference > options.max_loss + 1e-9
    ]
    for line in failures:
        print(f"river-vllm eval: {line}", file=sys.stderr)
    if options.json_file is not None:
        document = {
            "river_vllm": __version__,
            "options": options.model_dump(mode="json", exclude_unset=True),
            "sides": sides,
            "figures": [asdict(one) for one in found],
            "methods": METHODS,
            "failures": failures,
        }
        write_json(options.json_file, document)
    return 1 if failures else 0


def _print(figures: list[Paired], confidence: float) -> None:
    console = make_console()
    interval = f"B − A, {100 * confidence:g} % interval"
    table = Table("task", "filter", "metric", "problems", "A", "B", interval, "wins", "losses", "p")
    for one in figures:
        table.add_row(
            *(one.task, one.filter, one.metric, str(one.problems), f"{one.a:.4g}", f"{one.b:.4g}"),
            f"{one.difference:+.4f} ({one.low:+.4f} … {one.high:+.4f})",
            *(str(len(one.only_b)), str(len(one.only_a)), f"{one.p_value:.4f}"),
        )
    console.print(table)
    for one in figures:
        for text, ids in (("wins", one.only_b), ("losses", one.only_a)):
            if ids:
                line = f"{one.task} ({one.filter}) {one.metric}, {text} of B: {', '.join(ids)}"
                console.print(line, markup=False)
        console.print(
            f"{one.task} ({one.filter}): {one.identical} of {one.problems} answers are identical",
            markup=False,
        )
