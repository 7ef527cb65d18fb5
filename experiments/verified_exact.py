"""Count the answers of River and of vLLM's n-gram method that differ from stock vLLM's.

A verifying pass has more rows than a step without drafts, and a CPU's products may round otherwise
at another number of rows. With any method, two likeliest tokens that are neighbours in bf16 can
then change places. The table has the gap between the two tokens at each first difference. It also
compares stock vLLM with itself in another batch, and River with itself in another batch and
without drafts.

    python experiments/verified_exact.py MODEL --data gsm8k.jsonl:question --prompts 50
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import Any

from in_process import ENGINE
from vllm import LLM, SamplingParams

from river_vllm import RiverConfig, engine_args

NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 4,
    "prompt_lookup_max": 4,
    "prompt_lookup_min": 2,
}


def prompts_of(data: str, count: int) -> list[str]:
    file, _, field = data.partition(":")
    with Path(file).open(encoding="utf-8") as lines:
        return [json.loads(line)[field or "prompt"] for line in islice(lines, count)]


def run(engine: Any, prompts: list[str], tokens: int, batch: int) -> list[Any]:
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, logprobs=2)
    found = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        found += [o.outputs[0] for o in engine.generate(part, params, use_tqdm=False)]
    return found


def gaps(found: list[Any], stock: list[Any]) -> list[float]:
    """Stock's gap between its two likeliest tokens at each answer's first difference, sorted."""
    listed = []
    for ours, theirs in zip(found, stock, strict=True):
        pairs = enumerate(zip(ours.token_ids, theirs.token_ids, strict=True))
        first = next((index for index, (a, b) in pairs if a != b), None)
        if first is not None:
            logprobs = (entry.logprob for entry in theirs.logprobs[first].values())
            best, second, *_ = sorted(logprobs, reverse=True)
            listed.append(best - second)
    return sorted(listed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("--data", required=True, metavar="FILE:FIELD")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--verify", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--eager", action="store_true", help="without compilation")
    parser.add_argument("--n-gram", action="store_true", help="vLLM's n-gram method too")
    args = parser.parse_args()
    prompts = prompts_of(args.data, args.prompts)
    options = {**ENGINE, "enforce_eager": args.eager}
    stock = LLM(args.model, **options)
    expected = {batch: run(stock, prompts, args.tokens, batch) for batch in args.batches}
    print("| method | batch | answers that differ | of them by a gap above 0.25 | gaps |")
    print("|---|---|---|---|---|")
    alone = args.batches[0]
    for batch in args.batches[1:]:
        report("stock vLLM, other batch", batch, expected[batch], expected[alone])
    del stock
    engines: list[tuple[str, dict[str, Any]]] = [
        *(
            (f"River, always {k}", engine_args(args.model, RiverConfig(verify=k, draft="fixed")))
            for k in args.verify
        ),
        # Last: it imports numba, and vLLM 0.32 then cannot start another engine in this process
        # (triton_utils/dispatcher.py, ``_rebind_kernels``, looks into every module).
        *([("n-gram, 4", {"speculative_config": NGRAM})] if args.n_gram else []),
    ]
    for label, extra in engines:
        engine = LLM(args.model, **options, **extra)
        found = {batch: run(engine, prompts, args.tokens, batch) for batch in args.batches}
        for batch in args.batches:
            report(label, batch, found[batch], expected[batch])
        if label.startswith("River"):
            for batch in args.batches[1:]:
                report(
                    f"{label}, beside itself in batches of {alone}",
                    batch,
                    found[batch],
                    found[alone],
                )
            engine.collective_rpc(stop_drafting)
            without = run(engine, prompts, args.tokens, alone)
            report("River without drafts, beside itself with them", alone, without, found[alone])
        del engine


def stop_drafting(worker: Any) -> None:
    runner = worker.model_runner
    runner.drafter.propose = lambda **_: [[] for _ in runner.input_batch.req_ids]


def report(label: str, batch: int, found: list[Any], expected: list[Any]) -> None:
    listed = gaps(found, expected)
    wide = sum(gap > 0.25 for gap in listed)
    shown = ", ".join(f"{gap:.3f}" for gap in listed)
    print(f"| {label} | {batch} | {len(listed)} of {len(found)} | {wide} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
