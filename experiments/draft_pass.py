"""What a draft pass takes with the LM head of the listed tokens and with the full one, in turn.

Whole passes of one to sixteen rows on no request, with the picking of a token from their logits;
``--own`` adds so many tokens, as those of a request's text that are not listed.

    python experiments/draft_pass.py MODEL [--rows 1 4 16] [--own 0 50 200] [--rounds 40]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from in_process import ENGINE
from servers import machine
from vllm import LLM

from river_vllm import RiverConfig, engine_args
from river_vllm.verify.sampling import pick

GREEDY: Any = SimpleNamespace(all_greedy=True)


def once(drafter: Any, rows: int, columns: torch.Tensor | None) -> float:
    """Milliseconds of a pass."""
    start = time.perf_counter()
    zeros = torch.zeros(rows, dtype=torch.int64)
    logits = drafter.step([0] * rows, [1] * rows, zeros, zeros, columns)
    pick(logits, zeros, GREEDY).columns.tolist()
    return (time.perf_counter() - start) * 1e3


def measure(worker: Any, rows: int, own: list[int], rounds: int) -> dict[str, float]:
    """Medians by kind of head, in the worker."""
    runner = worker.model_runner
    listed = runner.get_model().river.listed
    size = runner.model_config.get_vocab_size()
    if listed is None:
        raise SystemExit("no token list is known for this checkpoint")
    others = torch.ones(size, dtype=torch.bool)
    others[listed] = False
    spare = others.nonzero().flatten()
    spare = spare[torch.randperm(len(spare), generator=torch.Generator().manual_seed(0))]
    heads: dict[str, torch.Tensor | None] = {f"full, {size}": None}
    for count in own:
        heads[f"{len(listed)} + {count}"] = torch.cat([listed, spare[:count]])
    found: dict[str, list[float]] = {name: [] for name in heads}
    for _ in range(rounds + 3):
        for name, columns in heads.items():
            found[name].append(once(runner.drafter.river, rows, columns))
    return {name: statistics.median(times[3:]) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--own", type=int, nargs="+", default=[0, 50, 200])
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    print(f"{Path(args.model).name}, {time.strftime('%Y-%m-%d')}, {machine()}")
    config = RiverConfig(verify=4, draft="fixed")
    engine = LLM(args.model, **engine_args(args.model, config, **ENGINE))
    for rows in args.rows:
        (found,) = engine.collective_rpc(measure, args=(rows, args.own, args.rounds))
        cells = ", ".join(f"{name}: {ms:.2f} ms" for name, ms in found.items())
        print(f"{rows} row(s): {cells}", flush=True)


if __name__ == "__main__":
    main()
