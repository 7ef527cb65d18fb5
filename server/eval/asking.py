"""Runs lm-eval on both sides in turn, reading ``/river/stats`` before and after each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.eval.options import EvalOptions
from server.eval.sides import Depth, Side, find_sides


class HarnessError(Exception):
    """lm-eval failed and printed the reason; carries its exit status."""


def ask(options: EvalOptions, folders: tuple[Path, Path]) -> dict[str, dict[str, Any]]:
    """Run lm-eval on both sides; its results and samples go to ``folders``.

    Returns:
        Each side's server, model, river settings and exit depth.

    Raises:
        RiverError: a server cannot be used.
        HarnessError: a request or lm-eval failed.
    """
    told: dict[str, dict[str, Any]] = {}
    for (name, side), folder in zip(find_sides(options).items(), folders, strict=True):
        print(f"{name}: {side}", file=sys.stderr)
        before = side.stats()
        _run_harness(options, side, folder)
        depth = Depth.between(before, side.stats())
        print(f"{name}: {depth or 'no decode token in /river/stats'}", file=sys.stderr)
        told[name] = {
            "base": side.endpoint.base,
            "model": side.endpoint.model,
            "river": side.river,
            "depth": asdict(depth) if depth else None,
        }
    return told


def _run_harness(options: EvalOptions, side: Side, folder: Path) -> None:
    river = {} if side.river is None else {"river": side.river}
    job = options.model_dump(mode="json", include={"tasks", "data", "include_path"})
    job["output"] = str(folder)
    job["arguments"] = {
        "model": "local-chat-completions" if options.chat else "local-completions",
        "model_args": {
            "model": side.endpoint.model,
            "base_url": f"{side.endpoint.base}/{'chat/' if options.chat else ''}completions",
            "num_concurrent": options.concurrency,
            "timeout": options.timeout,
            "tokenizer_backend": None,
            "tokenized_requests": False,
        },
        "num_fewshot": options.num_fewshot,
        "limit": options.limit,
        "gen_kwargs": (options.gen_kwargs or {}) | river,
        "apply_chat_template": options.chat,
        "fewshot_as_multiturn": options.chat,
        "confirm_run_unsafe_code": options.confirm_run_unsafe_code,
    }
    environment = dict(os.environ)
    if options.confirm_run_unsafe_code:
        environment["HF_ALLOW_CODE_EVAL"] = "1"  # the metric of such tasks requires it
    if not sys.stderr.isatty():
        environment["TQDM_DISABLE"] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "server.eval.harness"],
        input=json.dumps(job).encode(),
        stdout=subprocess.DEVNULL,  # lm-eval's table has one side only
        env=environment,
    )
    if done.returncode:
        raise HarnessError(done.returncode)
