"""Show where the time of a decode step goes, in one process, by kind of operator.

One request at a time (``--rows``: more) is forced to exit after each of ``--layers``. A run without
the profiler gives milliseconds a step, and one under ``torch.profiler`` gives the shares. The read
bandwidth, in the second line, bounds the speed of a step.

    python experiments/step_profile.py MODEL [--layers 4 2] [--lm-head river] [--activations int8]
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from in_process import ENGINE
from servers import machine
from vllm import LLM, SamplingParams

from river_vllm import RiverConfig, engine_args

KINDS = (
    ("4-bit products", r"^river::linear|int4pack|dynamic_4bit"),
    ("bf16 products", r"onednn_mm|aten::(mm|addmm|linear|matmul)|cpu_gemm|weight_packed"),
    ("attention, K/V", r"attention|kv_cache|reshape_and_cache"),
    ("decisions", r"^river::"),
    ("compiled operators", r"CompiledFxGraph|Pregraph|cpp_fused"),
    ("sampling and other operators", r"."),
)
"""Kinds of operators by a pattern of their names; the first match counts."""


def seconds(engine: Any, rows: int, tokens: int, river: dict[str, Any] | None) -> float:
    extra = None if river is None else {"river": river}
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0, extra_args=extra)
    prompts = [f"Number {i}: a river runs to the sea, and" for i in range(rows)]
    start = time.perf_counter()
    engine.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


def step_ms(engine: Any, rows: int, tokens: int, river: dict[str, Any] | None) -> float:
    """Milliseconds of a decode step, from the difference of a long and a short answer."""
    seconds(engine, rows, 4, river)
    found = [
        seconds(engine, rows, 2 + tokens, river) - seconds(engine, rows, 2, river) for _ in range(5)
    ]
    return statistics.median(found) / tokens * 1e3


def shares(engine: Any, rows: int, tokens: int, river: dict[str, Any] | None) -> dict[str, float]:
    """Milliseconds a step by kind of operator, under the profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        seconds(engine, rows, 2 + tokens, river)
    found: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        kind = next(kind for kind, names in KINDS if re.search(names, event.key))
        found[kind] += event.self_cpu_time_total / 1e3 / (2 + tokens)
    return dict(found)


def bandwidth() -> float:
    """Bytes per second read by a sum over a tensor of 1 GiB."""
    tensor = torch.ones(1 << 28, dtype=torch.float32)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        tensor.sum()
        times.append(time.perf_counter() - start)
    return tensor.nbytes / statistics.median(times)


def report(label: str, engine: Any, args: argparse.Namespace, river: Any) -> None:
    wall = step_ms(engine, args.rows, args.tokens, river)
    parts = shares(engine, args.rows, args.tokens, river)
    rest = wall - sum(parts.values())
    cells = " | ".join(f"{parts.get(kind, 0.0):.1f}" for kind, _ in KINDS)
    print(f"| {label} | {wall:.1f} | {cells} | {rest:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--lm-head", default="backbone")
    parser.add_argument("--activations", default="bf16")
    parser.add_argument("--stock", action="store_true", help="stock vLLM only")
    args = parser.parse_args()
    print(f"{Path(args.model).name}, {time.strftime('%Y-%m-%d')}, {machine()}")
    print(f"reading: {bandwidth() / 1e9:.1f} GB/s")
    heads = " | ".join(kind for kind, _ in KINDS)
    print(f"| step of {args.rows} row(s) | ms | {heads} | outside |")
    print("|---" * (len(KINDS) + 3) + "|")
    if args.stock:
        report("stock vLLM", LLM(args.model, **ENGINE), args, None)
        return
    config = RiverConfig(
        scope="token", max_rows="all", lm_head=args.lm_head, activations=args.activations
    )
    engine = LLM(args.model, **engine_args(args.model, config, **ENGINE))
    report("River, off", engine, args, {"enabled": False})
    report("River, deciding, none leaves", engine, args, {"threshold": 0.99999})
    for layers in args.layers:
        river = {"threshold": -1.0, "min_layers": layers}
        report(f"River, {layers} layers", engine, args, river)


if __name__ == "__main__":
    main()
