"""The same load by three clients: guidellm, ``vllm bench serve`` and ``river-vllm bench compare``.

One stock server, answers of equal length, the clients by turns; medians over the rounds of each
client's median per request, with bootstrap intervals. ``bench compare`` gets the server as both of
its sides. guidellm stands in an environment of its own (``make loadtest`` makes one), and vLLM's
client needs pandas.

    python experiments/bench_agreement.py MODEL --guidellm .venv-loadtest/bin/guidellm
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from servers import NAME, Server, machine
from servers import compare as bench_compare

from server.bench.figures import interval

METRICS = ("ttft", "tpot")
VLLM = (
    "from vllm.benchmarks.serve import add_cli_args, main;"
    "from vllm.utils.argparse_utils import FlexibleArgumentParser as P;"
    "p = P(); add_cli_args(p); main(p.parse_args())"
)
"""``vllm bench serve``, whose command the CPU distribution lacks."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a bf16 checkpoint")
    parser.add_argument("--guidellm", required=True, help="its command")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=16, help="per client and round")
    parser.add_argument("--prompt-tokens", type=int, default=70)
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    print(f"{Path(args.model).name}, {time.strftime('%Y-%m-%d')}, {machine()}\n")
    print("| users | metric, ms | guidellm | vllm bench serve | bench compare |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Server("stock", args.model, folder, ("--no-enable-prefix-caching",)) as server:
            server.wait()
            for users in args.concurrency:
                measure(args, server, folder, users)


def measure(args: argparse.Namespace, server: Server, folder: Path, users: int) -> None:
    """Both lines of one load."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    clients = {"guidellm": guidellm, "vllm": vllm, "river": river}
    for number in range(args.rounds):
        order = list(clients)
        for client in order[number % 3 :] + order[: number % 3]:
            medians = clients[client](args, server, folder, users, number)
            for metric in METRICS:
                found[client, metric].append(medians[metric])
    for metric in METRICS:
        cells = []
        for client in clients:
            values = found[client, metric]
            low, high = interval(values, 0.95, 0)
            spread = "" if low is None else f" ({low:.2f}–{high:.2f})"
            cells.append(f"{statistics.median(values):.2f}{spread}")
        print(f"| {users} | {metric} | {' | '.join(cells)} |", flush=True)


def guidellm(
    args: argparse.Namespace, server: Server, folder: Path, users: int, number: int
) -> dict[str, float]:
    out = folder / "guidellm.json"
    backend = {"kind": "openai_http", "target": server.url, "model": NAME}
    data = {"prompt_tokens": args.prompt_tokens, "output_tokens": args.tokens}
    run(
        *(args.guidellm, "run", "--disable-console"),
        *("--backend", json.dumps({**backend, "request_format": "/v1/completions"})),
        *("--profile", f"kind=concurrent,streams={users}"),
        *("--constraint", f"kind=max_requests,count={args.requests}"),
        *("--data", json.dumps({"kind": "synthetic_text", **data})),
        *("--seed", f"kind=static,value={number}"),
        *("--tokenizer", f"kind=huggingface_auto,model={args.model}"),
        *("--output", f"kind=json,path={out}"),
    )
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    metrics = benchmark["metrics"]
    # What guidellm calls ITL is the field's TPOT; its own TPOT counts the first token too.
    names = {"ttft": "time_to_first_token_ms", "tpot": "inter_token_latency_ms"}
    return {key: metrics[name]["successful"]["median"] for key, name in names.items()}


def vllm(
    args: argparse.Namespace, server: Server, folder: Path, users: int, number: int
) -> dict[str, float]:
    out = folder / "vllm.json"
    run(
        *(sys.executable, "-c", VLLM, "--backend", "openai", "--base-url", server.url),
        *("--model", args.model, "--served-model-name", NAME, "--dataset-name", "random"),
        *("--random-input-len", str(args.prompt_tokens), "--random-output-len", str(args.tokens)),
        *("--num-prompts", str(args.requests), "--max-concurrency", str(users), "--ignore-eos"),
        *("--num-warmups", "1", "--disable-tqdm", "--temperature", "0", "--seed", str(number)),
        *("--save-result", "--result-dir", str(folder), "--result-filename", out.name),
    )
    result = json.loads(out.read_text())
    return {metric: result[f"median_{metric}_ms"] for metric in METRICS}


def river(
    args: argparse.Namespace, server: Server, folder: Path, users: int, number: int
) -> dict[str, float]:
    report: Any = bench_compare(
        *(server.url, server.url, "--rounds", "1", "--block", str(args.requests // 2)),
        *("--concurrency", str(users), "--output-tokens", str(args.tokens)),
        *("--prompt-words", str(round(args.prompt_tokens / 1.4)), "--seed", str(number)),
    )
    ratios = {ratio["metric"]: ratio for ratio in report["ratios"]}
    return {metric: (ratios[metric]["a"] + ratios[metric]["b"]) / 2 for metric in METRICS}


def run(*command: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:6])} … failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")


if __name__ == "__main__":
    main()
