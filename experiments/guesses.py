"""How often guesses from the text are right: its last tokens have occurred before, and went on so.

For every place in greedy answers, the table has how often prompt lookup finds a guess, how often
the first guessed token is right, and how many of eight are.

    python experiments/guesses.py MODEL --data gsm8k.jsonl:question experiments/prompts/json.jsonl
"""

from __future__ import annotations

import argparse
from bisect import bisect_right
from collections import defaultdict

import numpy as np
from in_process import ENGINE
from verified_exact import prompts_of
from vllm import LLM, SamplingParams

from river_vllm import RiverConfig, engine_args
from river_vllm.modes.verified.depth import MATCHES
from river_vllm.modes.verified.draft import SHORTEST, continuation

MOST = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a checkpoint")
    parser.add_argument("--data", required=True, nargs="+", metavar="FILE:FIELD")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    engine = LLM(
        args.model,
        **ENGINE | {"max_model_len": 4096},
        enforce_eager=True,
        **engine_args(args.model, RiverConfig()),
    )
    params = SamplingParams(temperature=0.0, max_tokens=args.tokens)
    print(f"| prompts | match | share of places | first right | right of {MOST} |")
    print("|---|---|---|---|---|")
    for data in args.data:
        chats = [[{"role": "user", "content": p}] for p in prompts_of(data, args.prompts)]
        found: dict[int, list[int]] = defaultdict(list)
        for output in engine.chat(chats, params, use_tqdm=False):
            prompt, answer = output.prompt_token_ids, output.outputs[0].token_ids
            text = np.array([*prompt, *answer], dtype=np.int32)
            for place in range(len(prompt) + 1, len(text) - 1):
                tokens, match = continuation(text[:place], MOST)
                actual = text[place : place + len(tokens)].tolist()
                same = [a == b for a, b in zip(tokens, actual, strict=False)]
                found[bisect_right(MATCHES, match) if tokens else -1].append(
                    [*same, False].index(False)
                )
        places = sum(map(len, found.values()))
        edges = [SHORTEST, *MATCHES]
        for place, runs in sorted(found.items()):
            label = f"{edges[place]} or more" if place >= 0 else "none"
            first = sum(run > 0 for run in runs) / len(runs)
            print(
                f"| {data} | {label} | {len(runs) / places:.0%} | {first:.0%} "
                f"| {sum(runs) / len(runs):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
