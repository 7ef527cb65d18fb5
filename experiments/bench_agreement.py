"""The load client's figures beside those of ``vllm bench serve``: one server, the same requests.

The two clients take turns; medians over the rounds of each client's median per request. vLLM's
client needs pandas.

    python experiments/bench_agreement.py MODEL --concurrency 1 4
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from servers import NAME, Server, machine

METRICS = ("ttft", "tpot", "itl")
VLLM = (
    "from vllm.benchmarks.serve import add_cli_args, main;"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser as P;"
    "p = P(); add_cli_args(p); main(p.parse_args())"
)
"""``vllm bench serve``, whose command the CPU distribution lacks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=16, help="per client and round")
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = folder / "prompts.jsonl"
        lines = (f"Number {i}: " + "a river runs to the sea " * 8 for i in range(args.requests))
        prompts.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines))
        print(f"{Path(args.model).name}, {time.strftime('%Y-%m-%d')}, {machine()}\n")
        print("| users | metric, ms | river-vllm bench | vllm bench serve | ratio |")
        print("|---|---|---|---|---|")
        with Server("stock", args.model, folder, ("--no-enable-prefix-caching",)) as server:
            server.wait()
            for users in args.concurrency:
                compare(args, server, prompts, users)


def compare(args: argparse.Namespace, server: Server, prompts: Path, users: int) -> None:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        for client, run in (("river", river), ("vllm", vllm)):
            medians = run(args, server, prompts, users)
            for metric in METRICS:
                found[client, metric].append(medians[metric])
    for metric in METRICS:
        a, b = (statistics.median(found[client, metric]) for client in ("river", "vllm"))
        print(f"| {users} | {metric} | {a:.2f} | {b:.2f} | {a / b:.3f} |", flush=True)


def river(args: argparse.Namespace, server: Server, prompts: Path, users: int) -> dict[str, float]:
    out = prompts.with_name("river.json")
    run(
        *("-m", "server.cli.main", "bench", "run", server.url, "--api", "completions"),
        *("--dataset", str(prompts), "--output-tokens", str(args.tokens), "--ignore-eos"),
        *("--num-requests", str(args.requests), "--concurrency", str(users)),
        *("--no-progress", "--json", str(out)),
    )
    level = json.loads(out.read_text())["levels"][0]
    return {metric: level[f"{metric}_ms"]["p50"] for metric in METRICS}


def vllm(args: argparse.Namespace, server: Server, prompts: Path, users: int) -> dict[str, float]:
    out = prompts.with_name("vllm.json")
    run(
        *("-c", VLLM, "--backend", "openai", "--base-url", server.url, "--model", args.model),
        *("--served-model-name", NAME, "--dataset-name", "custom", "--skip-chat-template"),
        *("--dataset-path", str(prompts), "--custom-output-len", str(args.tokens)),
        *("--num-prompts", str(args.requests), "--max-concurrency", str(users), "--ignore-eos"),
        *("--disable-shuffle", "--num-warmups", "1", "--disable-tqdm", "--temperature", "0"),
        *("--save-result", "--result-dir", str(out.parent), "--result-filename", out.name),
    )
    result = json.loads(out.read_text())
    return {metric: result[f"median_{metric}_ms"] for metric in METRICS}


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:6])} … failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")


if __name__ == "__main__":
    main()
