"""Runs lm-evaluation-harness on one side; reads its job from standard input.

A process of its own keeps torch and other imports of lm-eval out of the command.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from river_vllm.errors import RiverError
from server.cli.prompts import read_rows


def load(
    fields: Sequence[str],
    examples: int,
    data: str | None = None,
    num_fewshot: int | None = None,
    **_: object,
) -> dict[str, Any]:
    """The data sets ``examples`` (the first rows) and ``test`` (all others).

    Args:
        fields: text fields of every row; ``id`` is added, the row's ``task_id`` or line number.
        examples: number of examples before a question, unless ``num_fewshot`` is given.
        data: the file.

    Raises:
        RiverError: names the file, the line, the field, its value and what is expected.
    """
    from datasets import Dataset

    if data is None:
        raise RiverError("--data: expected a file of problems, River's own tasks bring none")
    place = f"--data '{data}'"
    found = read_rows(Path(data), "--data")[1]
    rows = [_row(f"{place}, line {line}", line, row, fields) for line, row in found]
    count = examples if num_fewshot is None else num_fewshot
    if len(rows) <= count:
        raise RiverError(f"{place}: expected more rows than the {count} examples")
    return {"examples": Dataset.from_list(rows[:count]), "test": Dataset.from_list(rows[count:])}


def _row(place: str, line: int, row: Any, fields: Sequence[str]) -> dict[str, str]:
    if not isinstance(row, dict):
        raise RiverError(f"{place}: expected a JSON object, got {row!r}")
    for name in fields:
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise RiverError(f"{place}: {name!r} = {row.get(name)!r}: expected a text")
    return {"id": str(row.get("task_id", line)), **{name: row[name] for name in fields}}


REMOVED_TASKS = dict.fromkeys(
    ("river_humaneval", "river_humaneval_chat"),
    "use lm-eval's humaneval with --confirm-run-unsafe-code",
)
"""Tasks of earlier versions, with their replacements."""
TASKS = Path(__file__).with_name("tasks")

OWN = "river_"
"""Prefix of the names of River's own tasks."""


def main() -> int:
    """Run the job; the exit status: 1 if lm-eval or a request failed, 2 for unusable tasks."""
    from lm_eval.utils import setup_logging

    setup_logging(logging.ERROR)
    requests = logging.getLogger("lm_eval.models.api_models")
    requests.setLevel(logging.WARNING)  # logs why the server refused a request
    requests.addFilter(lambda record: "EOS string" not in str(record.msg))  # vLLM has its own EOS
    try:
        run(**json.load(sys.stdin))
    except RiverError as error:
        print(f"river-vllm eval: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        logging.getLogger("lm_eval").debug("", exc_info=True)
        reason = f"lm-eval failed (LMEVAL_LOG_LEVEL=DEBUG tells more): {error!r}"
        print(f"river-vllm eval: error: {reason}", file=sys.stderr)
        return 1
    return 0


def run(
    tasks: list[str],
    data: str | None,
    include_path: str | None,
    output: str,
    arguments: dict[str, Any],
) -> None:
    """Run and score the tasks; lm-eval's results and samples go to the folder ``output``.

    Args:
        data: the file that River's own tasks read.
        arguments: further arguments of ``lm_eval.simple_evaluate``.

    Raises:
        RiverError: a task is unknown, generates no text, or does not fit the arguments.
    """
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    shots = arguments["num_fewshot"]
    for name in tasks:
        if name in REMOVED_TASKS:
            raise RiverError(f"{name} was removed; {REMOVED_TASKS[name]}")
    folders = [str(TASKS), *([include_path] if include_path else [])]
    metadata = {"data": data, "num_fewshot": shots}
    # lm-eval reads thousands of files, for eight seconds, to know its own tasks.
    manager = TaskManager(include_path=folders, metadata=metadata, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folders, metadata=metadata)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        own = ", ".join(name for name in manager.all_tasks if name.startswith(OWN))
        more = "one of --include-path, or one that 'lm-eval ls tasks' lists"
        raise RiverError(f"TASK = {unknown[0]!r}: expected {own}, {more}")
    loaded = manager.load(tasks)["tasks"]
    for name, task in loaded.items():
        if task.OUTPUT_TYPE != "generate_until":
            raise RiverError(
                f"TASK = {name!r}: expected a task that generates text, got {task.OUTPUT_TYPE}: "
                "a likelihood comes with the prompt and one token, which never leave the backbone"
            )
        if shots and task.config.num_fewshot == 0:
            raise RiverError(f"--num-fewshot = {shots}: {name} asks without examples")
    if data and not any(name.startswith(OWN) for name in tasks):
        raise RiverError(f"--data = {data!r}: expected with one of River's own tasks, {OWN}…")
    tracker = EvaluationTracker(output_path=output)
    results = simple_evaluate(
        tasks=list(loaded.values()), evaluation_tracker=tracker, bootstrap_iters=0, **arguments
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)


if __name__ == "__main__":
    sys.exit(main())
