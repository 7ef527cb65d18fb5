#!/usr/bin/env python3
"""Record how 50 fixed requests are answered, and compare with an earlier record.

For changes that are to change nothing, before and after them:

    python tools/recorded_requests.py before.json
    python tools/recorded_requests.py after.json --against before.json

The requests are in recorded_requests.yaml, in groups of one engine and one process each. A record
holds each request's tokens, exit layers or drafts, report, prefix-cache hits and preemptions. What
an engine rounds depends on the CPU, the number of cores and the version of torch: make both records
on the same machine with as many cores.

Exit status: 0 where the record is written and agrees, 1 where an answer differs, 2 where an engine
fails.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import chain, zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import yaml

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from river_vllm import RiverConfig, engine_args  # noqa: E402
from tests.support.prompts import PROMPTS  # noqa: E402

TABLE = Path(__file__).with_suffix(".yaml")
"""Group by name."""
LONG = list(range(200, 300))
ENGINE: dict[str, Any] = {
    "max_model_len": 512,
    "max_num_batched_tokens": 512,
    "max_num_seqs": 16,
    "block_size": 32,
    "kv_cache_memory_bytes": 128 << 20,
    "seed": 0,
    "enforce_eager": True,
    "disable_log_stats": True,
}

Group = dict[str, Any]
Request = dict[str, Any]
Answer = dict[str, Any]


def river_config(settings: Mapping[str, Any], **more: Any) -> RiverConfig:
    """From the table's settings. ``scope: step`` had no name of its own before there were three
    scopes: a ``max_rows`` that is a number meant it."""
    scopes = get_args(RiverConfig.model_fields["scope"].annotation)
    if settings.get("scope") == "step" and "step" not in scopes:
        settings = {**settings, "scope": "token"}
    return RiverConfig(**settings, **more)


def start(model: str, config: RiverConfig, **options: Any) -> Any:
    """An engine whose scheduler and worker are in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    return LLM(model, **engine_args(model, config, **{**ENGINE, **options}))


def run(group: Group, model: str, cache: str) -> tuple[list[Answer], int]:
    """The answers to a group's requests, and the peak memory of this process in KiB."""
    config = river_config(group["config"], cache_dir=cache)
    engine = start(model, config, **group.get("engine", {}))
    preemptions = _preemptions(engine)
    outputs: list[Any] = []
    for batch in group["batches"]:
        prompts = [_prompt(request, outputs) for request in batch]
        outputs += engine.generate(prompts, [_sampling(r) for r in batch], use_tqdm=False)
    answers = [
        {
            "request": request,
            **_generated(output.outputs[0], verified="verify" in group["config"]),
            "cached": output.num_cached_tokens,
            "preempted": preemptions[output.request_id],
        }
        for request, output in zip(chain(*group["batches"]), outputs, strict=True)
    ]
    return answers, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _preemptions(engine: Any) -> Counter[str]:
    """By request, counted from now on."""
    scheduler = engine.llm_engine.engine_core.engine_core.scheduler
    preempt, found = scheduler._preempt_request, Counter[str]()

    def counting(request: Any, *args: Any, **kwargs: Any) -> Any:
        found[request.request_id.rsplit("-", 1)[0]] += 1  # behind it is vLLM's own suffix
        return preempt(request, *args, **kwargs)

    scheduler._preempt_request = counting
    return found


def _prompt(request: Request, outputs: Sequence[Any]) -> Any:
    if "after" in request:
        before = outputs[request["after"]]
        return {"prompt_token_ids": [*before.prompt_token_ids, *before.outputs[0].token_ids]}
    prompt = request["prompt"]
    return {"prompt_token_ids": LONG} if prompt == "long" else PROMPTS[prompt]


def _sampling(request: Request) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=request.get("tokens", 24),
        ignore_eos=True,
        temperature=1.0 if "seed" in request else 0.0,
        seed=request.get("seed"),
        extra_args={"river": request["river"]} if "river" in request else None,
    )


def _generated(choice: Any, verified: bool) -> Answer:
    """Of one of vLLM's ``CompletionOutput``: its tokens, how each was made, the numbers of the
    response's report, and the array that both are read from."""
    from river_vllm.depths import ExitSummary, trace
    from river_vllm.modes.verified import DraftSummary, VerifiedMode

    raw = choice.routed_experts
    report: dict[str, Any]
    if verified:
        drafts = DraftSummary()
        drafts.add(raw)
        report = {
            name: getattr(drafts, name) for name in ("tokens", "steps", "drafted", "accepted")
        }
    else:
        exits = ExitSummary()
        exits.add(raw)
        layers = {str(layer): count for layer, count in sorted(exits.layers.items())}
        report = {"tokens": exits.tokens, "exit_layers": layers, "held": exits.held}
    return {
        "tokens": list(choice.token_ids),
        "trace": VerifiedMode().trace(raw) if verified else trace(raw),
        "report": report,
        "raw": raw.tolist(),
    }


def record(chosen: Mapping[str, Group]) -> dict[str, Answer]:
    """Answers by group and number; prints a line for each group.

    Raises:
        RuntimeError: an engine failed; names its group.
    """
    from tests.support.checkpoints import smollm2, tiny_qwen2

    answers: dict[str, Answer] = {}
    with tempfile.TemporaryDirectory() as work:
        models = {"smollm2": smollm2(), "tiny": tiny_qwen2(Path(work, "tiny"))}
        for name, group in chosen.items():
            begun = time.monotonic()
            arguments = (group, str(models[group["model"]]), str(Path(work, "cache")))
            try:
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    found, memory = process.submit(run, *arguments).result()
            except Exception as error:
                raise RuntimeError(f"the engine of group '{name}' failed") from error
            answers |= {f"{name}/{index}": answer for index, answer in enumerate(found)}
            tokens = sum(len(answer["tokens"]) for answer in found)
            cached, preempted = (sum(a[key] for a in found) for key in ("cached", "preempted"))
            print(
                f"{name:20}{len(found):2} requests, {tokens:3} tokens, {cached:3} cached, "
                f"{preempted} preemptions, {time.monotonic() - begun:.0f} s, {memory >> 10} MiB",
                flush=True,
            )
    return answers


def differences(before: Mapping[str, Answer], now: Mapping[str, Answer]) -> list[str]:
    """For each request that is answered otherwise, the first place where it is."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        if name not in before or name not in now:
            found.append(f"{name}: only {'before' if name in before else 'now'}")
        elif (place := _difference(before[name], now[name])) is not None:
            found.append(f"{name}: {place}")
    return found


def _difference(before: Any, now: Any, place: str = "") -> str | None:
    parts: list[tuple[str, Any, Any]] = []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        parts = [(f"{place}.{key}".lstrip("."), before.get(key), now.get(key)) for key in keys]
    elif isinstance(before, list) and isinstance(now, list):
        pairs = enumerate(zip_longest(before, now))
        parts = [(f"{place}[{index}]", *pair) for index, pair in pairs]
    elif before != now:
        return f"{place}: {before!r} before, {now!r} now"
    return next((found for p, a, b in parts if (found := _difference(a, b, p)) is not None), None)


def _read(path: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None
    return found


def main() -> int:
    """Command line entry."""
    table: dict[str, Group] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="where the record is written")
    parser.add_argument("--against", metavar="FILE", type=_read, help="an earlier record")
    parser.add_argument("--only", metavar="GROUP", nargs="+", choices=table, default=list(table))
    options = parser.parse_args()
    try:
        answers = record({name: table[name] for name in options.only})
    except Exception:
        traceback.print_exc()
        return 2
    where = {"torch": version("torch"), "cores": len(os.sched_getaffinity(0))}
    options.file.write_text(json.dumps({"where": where, "answers": answers}) + "\n")
    if options.against is None:
        return 0
    if options.against["where"] != where:
        print(f"not on the same machine: {options.against['where']} before, {where} now")
    earlier = options.against["answers"].items()
    before = {name: answer for name, answer in earlier if name.split("/")[0] in options.only}
    different = differences(before, answers)
    print("\n".join(different) or f"{len(answers)} answers are as before")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
